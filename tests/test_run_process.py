# SPDX-License-Identifier: GPL-2.0-or-later
"""The program must not see that userswap started it: status, signals, terminal, files, environment.

Each test runs with a stand-in for the engine, and with the engine once it is built.
"""

import importlib.util
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

HERE = Path(__file__).parent
STANDIN = [sys.executable, str(HERE / "standin_engine.py")]
REAL = [sys.executable, "-m", "userswap"]
HAS_ENGINE = importlib.util.find_spec("userswap.engine") is not None
PATIENCE_SECONDS = 20


# The stand-in knows of no forks that are caught.
@pytest.fixture(params=[pytest.param("standin", marks=pytest.mark.root), *(["engine"] if HAS_ENGINE else [])])
def userswap(request: pytest.FixtureRequest) -> list[str]:
    """The words before the command; the summary is off, so that outputs can be compared."""
    return [*(STANDIN if request.param == "standin" else REAL), "run", "--quiet", "--ram", "256M", "--"]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    wait_until(lambda: not engines(), "engine processes were left behind")
    wait_until(lambda: not keepers(), "keepers were left behind")


def keepers() -> list[int]:
    return engines("userswap-keeper")


def engines(name_wanted: str = "userswap-engine") -> list[int]:
    """Engine processes, or keepers, of this test."""
    found = []
    for name in os.listdir("/proc"):
        try:
            comm = Path(f"/proc/{name}/comm").read_text().strip()
            marker = f"PYTEST_CURRENT_TEST={os.environ['PYTEST_CURRENT_TEST'].rpartition(' ')[0]}".encode()
            if comm == name_wanted and marker in Path(f"/proc/{name}/environ").read_bytes():
                found.append(int(name))
        except OSError:
            pass
    return found


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        select.select([], [], [], 0.01)


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def gone(pid: int) -> bool:
    return state(pid) in ("", "Z")


def finish(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, **options
    )


def start(command: list[str], **options: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, err


# Exit status


@pytest.mark.parametrize("code", [0, 1, 42, 125, 255])
def test_exit_status(userswap: list[str], code: int) -> None:
    done = finish([*userswap, "sh", "-c", f"exit {code}"])
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGPIPE, signal.SIGINT]
)
def test_status_after_a_signal(userswap: list[str], number: int) -> None:
    assert finish([*userswap, "sh", "-c", f"kill -{int(number)} $$"]).returncode == 128 + number


def test_commands_that_cannot_start(userswap: list[str], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    broken = tmp_path / "broken"
    broken.write_text("#!/no/such/interpreter\n")
    broken.chmod(0o755)
    for name, status, why in [
        ("no-such-command", 127, "command not found"),
        ("/no/such/file", 127, "No such file or directory"),
        ("", 127, "command not found"),
        (str(plain), 126, "Permission denied"),
        (str(tmp_path), 126, "Permission denied"),
        (str(broken), 127, "No such file or directory"),
    ]:
        done = finish([*userswap, name])
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr == f"userswap: {name}: {why}\n"


def test_script_without_interpreter_line(userswap: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text('echo "$1"\n')
    script.chmod(0o755)
    assert finish([*userswap, str(script), "a b"]).stdout == "a b\n"


# What the program inherits

LOOK = (
    "grep -E '^(SigBlk|SigIgn|SigCgt|Umask|NoNewPrivs|CapEff|Groups)' /proc/self/status;"
    "ls /proc/self/fd; readlink /proc/self/fd/*; pwd; ulimit -a; nice; env | sort"
)


def same_look(userswap: list[str], **options: object) -> None:
    direct = finish(["sh", "-c", LOOK], **options)
    through = finish([*userswap, "sh", "-c", LOOK], **options)
    assert direct.returncode == through.returncode == 0
    assert through.stdout.splitlines() == hide_pipes(direct.stdout, through.stdout)


def hide_pipes(direct: str, through: str) -> list[str]:
    """Each run has pipes and processes of its own numbers."""
    numbered = re.compile(r"(pipe:\[|/proc/)\d+")
    lines = zip(direct.splitlines(), through.splitlines(), strict=True)
    return [t if numbered.sub(r"\1", d) == numbered.sub(r"\1", t) else d for d, t in lines]


def test_inherits_the_usual(userswap: list[str]) -> None:
    same_look(userswap)


def test_inherits_signals(userswap: list[str]) -> None:
    def change() -> None:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTSTP})

    same_look(userswap, preexec_fn=change)


def test_inherits_files(userswap: list[str], tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        same_look(userswap, pass_fds=[file.fileno()], cwd=tmp_path)


def test_closed_standard_files_stay_closed(userswap: list[str], tmp_path: Path) -> None:
    result = tmp_path / "result"
    same = 'ls -l /proc/self/fd | wc -l > "$0"; [ ! -e /proc/$$/fd/0 ] && [ ! -e /proc/$$/fd/1 ]'
    done = finish(["sh", "-c", 'exec "$@" <&- >&-', "sh", *userswap, "sh", "-c", same, str(result)])
    assert done.returncode == 0, done.stderr


def test_bare_environment(userswap: list[str]) -> None:
    """Python adds LC_CTYPE in the C locale."""
    places = [f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", f"PATH={os.environ['PATH']}"]
    done = finish(["env", "-i", *places, *userswap, "env"])
    assert sorted(done.stdout.splitlines()) == sorted(places)


def test_streams(userswap: list[str]) -> None:
    done = finish([*userswap, "sh", "-c", "cat; echo err >&2"], input="through\n" * 1000)
    assert (done.stdout, done.stderr) == ("through\n" * 1000, "err\n")


def test_same_group_and_session(userswap: list[str]) -> None:
    code = "import os; print(os.getpgrp(), os.getsid(0))"
    process = start([*userswap, sys.executable, "-c", code], start_new_session=True)
    assert end(process)[1].split() == [str(process.pid)] * 2


def test_a_reader_waits_for_nobody_but_the_program(userswap: list[str]) -> None:
    """The program closes its end of the pipes; userswap must not keep them open."""
    read_end, write_end = os.pipe()
    code = f"import os, sys; os.close(1); os.close({write_end}); sys.stdin.read()"
    process = start([*userswap, sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[write_end])
    os.close(write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)
    assert line_of(process) == ""
    assert process.poll() is None
    assert end(process)[0] == 0


def test_a_writer_waits_for_nobody_but_the_program(userswap: list[str]) -> None:
    process = start([*userswap, "sh", "-c", "exec <&-; echo closed; exec sleep 1000"], stdin=subprocess.PIPE)
    assert line_of(process) == "closed"
    assert process.stdin is not None
    wait_until(lambda: broken(process.stdin.fileno()), "standard input is still open somewhere")  # type: ignore[union-attr]
    process.stdin.close()
    process.stdin = None
    process.terminate()
    assert end(process)[0] == 128 + signal.SIGTERM


def broken(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


# Signals

COUNT = """
import os, signal, sys
counts = {}
def count(number, frame):
    counts[number] = counts.get(number, 0) + 1
    print(signal.Signals(number).name, flush=True)
for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGQUIT", "SIGALRM", "SIGWINCH"):
    signal.signal(getattr(signal, name), count)
print("ready", flush=True)
while "SIGUSR2" not in [signal.Signals(n).name for n in counts]:
    signal.pause()
print(sum(counts.values()), flush=True)
"""


def test_signals_sent_to_userswap_reach_the_program(userswap: list[str]) -> None:
    process = start([*userswap, sys.executable, "-c", COUNT])
    assert line_of(process) == "ready"
    names = ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT", "SIGQUIT", "SIGALRM", "SIGWINCH", "SIGUSR2"]
    for name in names:
        process.send_signal(getattr(signal, name))
        assert line_of(process) == name
    assert line_of(process) == str(len(names))
    assert end(process) == (0, "", "")


def test_signal_before_the_program_is_there(userswap: list[str]) -> None:
    for _ in range(10):
        process = start([*userswap, "sleep", "1000"])
        wait_until(lambda p=process: blocks_signals(p.pid), "userswap does not start")  # type: ignore[misc]
        process.terminate()
        assert end(process)[0] == 128 + signal.SIGTERM


def blocks_signals(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(re.findall(r"SigBlk:\t(\w+)", status)[0], 16)
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def test_signal_of_the_tree_to_its_group_comes_once(userswap: list[str]) -> None:
    code = COUNT.replace(
        'print("ready", flush=True)', "os.kill(0, signal.SIGTERM); os.kill(0, signal.SIGUSR2)"
    )
    process = start([*userswap, sys.executable, "-c", code], start_new_session=True)
    status, out, _ = end(process)
    assert status == 0
    assert sorted(out.split()) == ["2", "SIGTERM", "SIGUSR2"]


def test_alarm_set_before_exec(userswap: list[str]) -> None:
    code = "import os, signal, sys; signal.alarm(1); os.execvp(sys.argv[1], sys.argv[1:])"
    assert finish([sys.executable, "-c", code, *userswap, "sleep", "1000"]).returncode == 128 + signal.SIGALRM


def test_stop_and_continue_without_a_terminal(userswap: list[str]) -> None:
    process = start([*userswap, "sh", "-c", "echo $$; read line; echo $line"], stdin=subprocess.PIPE)
    program = int(line_of(process))
    os.kill(program, signal.SIGSTOP)
    assert os.WSTOPSIG(os.waitpid(process.pid, os.WUNTRACED)[1]) == signal.SIGSTOP
    os.kill(process.pid, signal.SIGCONT)
    wait_until(lambda: state(program) == "S", "the program was not continued")
    os.kill(program, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    os.kill(program, signal.SIGCONT)
    wait_until(lambda: state(process.pid) == "S", "userswap was not continued with the program")
    assert process.communicate("done\n", timeout=PATIENCE_SECONDS)[0] == "done\n"


# The terminal


class Terminal:
    """A command under a terminal of its own."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["PS1"] = "$ "
            os.execvp(command[0], command)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def expect(self, pattern: str) -> str:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := self.find(pattern)):
            assert time.monotonic() < deadline, f"{pattern!r} did not come, but {self.seen!r}"
            self.read(PATIENCE_SECONDS)
        return found

    def find(self, pattern: str) -> str:
        found = re.search(pattern, self.seen)
        if found:
            self.seen = self.seen[found.end() :]
        return found[0] if found else ""

    def read(self, patience: float) -> None:
        if select.select([self.fd], [], [], patience)[0]:
            try:
                self.seen += os.read(self.fd, 4096).decode()
            except OSError:  # the other side is closed
                raise AssertionError(f"the terminal was closed after {self.seen!r}") from None

    def status(self) -> int:
        pidfd = os.pidfd_open(self.pid)
        ended = select.select([pidfd], [], [], PATIENCE_SECONDS)[0]
        os.close(pidfd)
        if not ended:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.fd)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert ended, f"it does not end, but shows {self.seen!r}"
        return status


@pytest.fixture
def shell() -> Iterator[Terminal]:
    terminal = Terminal(["bash", "--norc", "--noprofile", "-i"])
    terminal.expect(r"\$ ")
    yield terminal
    terminal.type("\x03\nexit\n")
    terminal.type("exit\n")
    terminal.status()


def quoted(words: list[str]) -> str:
    import shlex

    return shlex.join(words)


def test_interrupt_key_comes_once(userswap: list[str], tmp_path: Path) -> None:
    program = tmp_path / "count.py"
    program.write_text(COUNT)
    terminal = Terminal([*userswap, sys.executable, str(program)])
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("SIGINT")
    terminal.type("\x1c")
    terminal.expect("SIGQUIT")
    os.kill(terminal.pid, signal.SIGUSR2)
    terminal.expect("SIGUSR2")
    terminal.expect("3\r\n")
    assert terminal.status() == 0


def test_interrupt_key_ends_a_program_that_does_not_mind(userswap: list[str]) -> None:
    terminal = Terminal([*userswap, "sh", "-c", "echo ready; exec sleep 1000"])
    terminal.expect("ready")
    terminal.type("\x03")
    assert terminal.status() == 128 + signal.SIGINT


def test_job_control(userswap: list[str], shell: Terminal) -> None:
    shell.type(quoted([*userswap, "sh", "-c", "echo rea''dy; read line; echo got-$line; exit 9"]) + "\n")
    shell.expect("ready\r\n")
    shell.type("\x1a")
    shell.expect(r"Stopped[^\n]*")
    shell.expect(r"\$ ")
    shell.type("jobs\n")
    shell.expect("Stopped")
    shell.expect(r"\$ ")
    shell.type("fg\n")
    shell.expect("fg")
    shell.type("word\n")
    shell.expect("got-word\r\n")
    shell.type("echo status-$?\n")
    shell.expect("status-9")


# A shell of one job, which misses no stop: bash may, of a job that stops again as soon as it was continued.
ONE_JOB = """
import os, signal, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = os.fork()
if job == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])
def stopped():
    status = os.waitpid(job, os.WUNTRACED)[1]
    print("stopped by", signal.Signals(os.WSTOPSIG(status)).name, flush=True)
    os.tcsetpgrp(0, os.getpgrp())
stopped()
os.killpg(job, signal.SIGCONT)  # as `bg`: it reads from the terminal, and the kernel stops it again
stopped()
os.tcsetpgrp(0, job)
os.killpg(job, signal.SIGCONT)  # as `fg`
print("ended with", os.waitstatus_to_exitcode(os.waitpid(job, 0)[1]), flush=True)
"""


def test_background_job_that_reads_is_stopped_again(userswap: list[str]) -> None:
    program = ["sh", "-c", "echo rea''dy; read line; echo got-$line; exit 9"]
    terminal = Terminal([sys.executable, "-c", ONE_JOB, *userswap, *program])
    terminal.expect("ready\r\n")
    terminal.type("\x1a")
    terminal.expect("stopped by SIGTSTP")
    terminal.expect("stopped by SIGTTIN")
    terminal.type("word\n")
    terminal.expect("got-word\r\n")
    terminal.expect("ended with 9\r\n")
    assert terminal.status() == 0


def test_background_job_runs_on(userswap: list[str], shell: Terminal, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    # Without a child: a shell that waits for one in vfork() cannot stop, with userswap or without.
    loop = f"echo rea''dy; while [ ! -e {flag} ]; do :; done; exit 5"
    shell.type(quoted([*userswap, "sh", "-c", loop]) + "\n")
    shell.expect("ready\r\n")
    shell.type("\x1a")
    shell.expect(r"Stopped[^\n]*")
    shell.type("bg\n")
    shell.expect("&")
    flag.write_text("")
    shell.type("wait %1; echo status-$?\n")
    shell.expect("status-5")


def test_program_that_handles_the_stop_key_itself(
    userswap: list[str], shell: Terminal, tmp_path: Path
) -> None:
    """As editors do: tidy the screen first, then stop. The shell must not have the terminal before."""
    program = tmp_path / "editor.py"
    program.write_text(
        "import os, select, signal, termios\n"
        "def stop(number, frame):\n"
        "    termios.tcsetattr(0, termios.TCSADRAIN, termios.tcgetattr(0))  # SIGTTOU in the background\n"
        "    print('ti' + 'died', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    print('ba' + 'ck', flush=True)\n"
        "signalled, waker = os.pipe()\n"
        "os.set_blocking(waker, False)\n"
        "signal.set_wakeup_fd(waker)  # a signal that comes just before it waits is not missed\n"
        "signal.signal(signal.SIGTSTP, stop)\n"
        "print('rea' + 'dy', flush=True)\n"
        "while 0 not in (ready := select.select([0, signalled], [], [])[0]):\n"
        "    os.read(signalled, 1)\n"
        "print('got-' + os.read(0, 99).decode(), flush=True)\n"
    )
    shell.type(quoted([*userswap, sys.executable, str(program)]) + "\n")
    for _ in range(2):
        shell.expect("ready|back")
        shell.type("\x1a")
        shell.expect("tidied")
        shell.expect(r"Stopped[^\n]*")
        shell.expect(r"\$ ")
        shell.type("fg\n")
    shell.expect("back")
    shell.type("word\n")
    shell.expect("got-word")


def test_program_that_ignores_the_stop_key(userswap: list[str], shell: Terminal) -> None:
    shell.type(
        quoted([*userswap, "sh", "-c", "trap '' TSTP; echo rea''dy; read line; echo got-$line"]) + "\n"
    )
    shell.expect("ready\r\n")
    shell.type("\x1a")
    shell.type("word\n")
    shell.expect("got-.*word")


def test_kill_of_a_job(userswap: list[str], shell: Terminal) -> None:
    shell.type(quoted([*userswap, "sleep", "1000"]) + " & echo rea''dy\n")
    shell.expect("ready\r\n")
    shell.type("kill %1; wait %1; echo status-$?\n")
    shell.expect("status-143")


def test_interactive_shell_inside(userswap: list[str], shell: Terminal) -> None:
    shell.type(quoted([*userswap, "bash", "--norc", "--noprofile", "-i"]) + "\n")
    shell.expect(r"\$ ")
    # The key comes when the job runs for sure: between fork and exec bash loses it, with us or without.
    shell.type("sh -c 'echo level-$((1+1)); read line; echo job-$line'\n")
    shell.expect("level-2")
    shell.type("\x1a")
    shell.expect(r"Stopped[^\n]*")
    shell.expect(r"\$ ")
    shell.type("fg\n")
    shell.expect("fg")
    shell.type("word\n")
    shell.expect("job-.*word")
    shell.expect(r"\$ ")
    shell.type("exit 4\n")
    shell.expect(r"\$ ")
    shell.type("echo status-$?\n")
    shell.expect("status-4")


# When things go wrong


def tree_of_three(userswap: list[str], tmp_path: Path) -> tuple["subprocess.Popen[str]", list[int]]:
    """A program with a child in its group and one in a session of its own, all running."""
    script = "setsid sleep 1000 & echo $!; sleep 1000 & echo $!; echo $$; wait"
    process = start([*userswap, "sh", "-c", script], cwd=tmp_path)
    return process, [int(line_of(process)) for _ in range(3)]


def test_engine_killed(userswap: list[str], tmp_path: Path) -> None:
    """Another one takes over, and nobody notices."""
    process, pids = tree_of_three(userswap, tmp_path)
    (engine,) = engines()
    os.kill(engine, signal.SIGKILL)
    wait_until(lambda: engines() not in ([], [engine]), "no other engine takes over")
    assert not any(map(gone, pids))
    os.kill(pids[0], signal.SIGTERM)
    os.kill(pids[1], signal.SIGTERM)
    assert end(process) == (0, "", "")


def test_engine_killed_when_it_has_just_begun(userswap: list[str]) -> None:
    process = start([*userswap, "sh", "-c", "read line; echo got-$line; exit 5"], stdin=subprocess.PIPE)
    for _ in range(3):
        wait_until(lambda: engines() or process.poll() is not None, "there is no engine")
        for engine in engines():
            with suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)
    out, err = process.communicate("word\n", timeout=PATIENCE_SECONDS)
    if process.returncode == 125:  # so early that the program had not begun
        assert (out, "died" in err) == ("", True)
    else:
        assert (process.returncode, out, err) == (5, "got-word\n", "")


def test_front_killed(userswap: list[str], tmp_path: Path) -> None:
    process, pids = tree_of_three(userswap, tmp_path)
    process.kill()
    process.wait(PATIENCE_SECONDS)
    assert len(engines()) == 1
    assert not any(map(gone, pids))
    for pid in pids:
        with suppress(ProcessLookupError):  # the shell waits for the others, and ends with them
            os.kill(pid, signal.SIGKILL)
    end(process)


def test_children_outlive_the_program(userswap: list[str], tmp_path: Path) -> None:
    script = "setsid sleep 1000 > /dev/null 2>&1 & echo $!; exit 6"
    area = tmp_path / "area"
    words = [*userswap[:-1], "--swap", f"{area}:64M", "--"]
    process = start([*words, "sh", "-c", script])
    child = int(line_of(process))
    assert end(process) == (6, "", "")
    assert not gone(child)
    assert len(engines()) == 1
    second = finish([*words, "true"])
    assert second.returncode == 125
    assert "in use by another userswap" in second.stderr
    os.kill(child, signal.SIGTERM)
    wait_until(lambda: not engines(), "the engine stays though the tree has ended")
    assert finish([*words, "true"]).returncode == 0


@pytest.mark.parametrize("who", ["userswap-engine", "userswap-keeper"])
def test_killed_after_the_program_has_ended(userswap: list[str], who: str) -> None:
    """Without the keeper the tree ends; another engine takes over."""
    script = "(sleep 1001 & setsid sleep 1002 & echo $!; wait) > /dev/null 2>&1 & echo $!"
    process = start([*userswap, "sh", "-c", script])
    child = int(line_of(process))
    assert end(process) == (0, "", "")
    children = Path(f"/proc/{child}/task/{child}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, "the children do not start")
    pids = [child, *map(int, children.read_text().split())]
    (killed,) = engines(who)
    os.kill(killed, signal.SIGKILL)
    if who == "userswap-engine":
        wait_until(lambda: engines() not in ([], [killed]), "no other engine takes over")
        assert not any(map(gone, pids))
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: all(map(gone, pids)), "children live on without their engine")


def test_keeper_killed(userswap: list[str], tmp_path: Path) -> None:
    process, pids = tree_of_three(userswap, tmp_path)
    (keeper,) = keepers()
    os.kill(keeper, signal.SIGKILL)
    status, _, err = end(process)
    assert status == 125
    assert err == (
        "userswap: its keeper died (signal 9): the program was stopped, since nobody sees to its memory\n"
    )
    wait_until(lambda: all(map(gone, pids)), "the program lives on without its engine")


def test_keeper_and_front_killed(tmp_path: Path) -> None:
    """The engine ends what is left."""
    process, pids = tree_of_three([*REAL, "run", "--quiet", "--ram", "256M", "--"], tmp_path)
    (keeper,) = keepers()
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(keeper, signal.SIGKILL)
    process.kill()
    end(process)
    wait_until(lambda: all(map(gone, pids)), "the program lives on without its engine")


def test_killed_before_the_engine_knows_the_program(tmp_path: Path) -> None:
    """The program itself ends keeper and front, as the first thing it does."""
    script = "read a b c front rest < /proc/$PPID/stat; kill -9 $front $PPID; echo $$; exec sleep 1000"
    process = start([*REAL, "run", "--quiet", "--ram", "256M", "--", "sh", "-c", script], cwd=tmp_path)
    status, _, _ = end(process)
    assert status == -signal.SIGKILL


def test_area_is_free_at_once_after_a_run(userswap: list[str], tmp_path: Path) -> None:
    words = [*userswap[:-1], "--swap", f"{tmp_path / 'area'}:64M", "--"]
    for _ in range(5):
        done = finish([*words, "true"])
        assert (done.returncode, done.stderr) == (0, "")


def test_new_area_goes_when_the_command_does_not_start(userswap: list[str], tmp_path: Path) -> None:
    done = finish([*userswap[:-1], "--swap", f"{tmp_path / 'area'}:64M", "--", "no-such-command"])
    assert done.returncode == 127
    assert list(tmp_path.iterdir()) == []


def test_summary_and_statistics(userswap: list[str], tmp_path: Path) -> None:
    words = [word for word in userswap[:-1] if word != "--quiet"]
    done = finish([*words, "--stats", "run.json", "--", "sh", "-c", "cd /; exit 2"], cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"userswap: [0-9.]+ s, peak .+ of 256.0 MiB; nothing was swapped\n", done.stderr)
    counts = json.loads((tmp_path / "run.json").read_text())
    assert counts["ram_limit_bytes"] == 256 << 20
    assert counts["processes_left_alone"] == []
    assert counts["faults"] == 0
    assert 0 < counts["wall_seconds"] < PATIENCE_SECONDS


def test_traced_program_is_refused(userswap: list[str]) -> None:
    done = finish([sys.executable, str(HERE / "programs" / "follow_forks.py"), *userswap, "true"])
    assert done.returncode == 125
    assert re.fullmatch(r"userswap: true: already traced by process \d+: it cannot be entered\n", done.stderr)


def test_many_orphans_are_reaped(userswap: list[str]) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do (true &) ; done; echo $PPID; read line"
    process = start([*userswap, "sh", "-c", script], stdin=subprocess.PIPE)
    keeper = line_of(process)
    children = Path(f"/proc/{keeper}/task/{keeper}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, "zombies are left")
    process.communicate("\n", timeout=PATIENCE_SECONDS)


# With the stand-in alone: what the engine says

STANDIN_RUN = [*STANDIN, "run", "--quiet", "--ram", "64M"]


def standin(mode: str, **values: str) -> dict[str, str]:
    return {**os.environ, "USERSWAP_STANDIN": mode, **values}


def test_engine_refuses(tmp_path: Path) -> None:
    swap = ["--swap", f"{tmp_path / 'area'}:64M"]
    done = finish([*STANDIN_RUN, *swap, "--", "touch", str(tmp_path / "ran")], env=standin("refuse"))
    assert done.returncode == 125
    assert done.stderr == "userswap: --ram 67108864 is too small: 8 MiB is the least\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.root
def test_engine_gives_up(tmp_path: Path) -> None:
    trigger = tmp_path / "trigger"
    script = f"setsid sleep 1000 & echo $!; echo $$; touch {trigger}; wait"
    process = start(
        [*STANDIN_RUN, "--", "sh", "-c", script], env=standin("fail", USERSWAP_TRIGGER=str(trigger))
    )
    pids = [int(line_of(process)) for _ in range(2)]
    status, _, err = end(process)
    assert (status, err) == (125, "userswap: swap is exhausted: the program was stopped\n")
    wait_until(lambda: all(map(gone, pids)), "the program lives on without its engine")


@pytest.mark.root
def test_keeper_holds_what_the_engine_opens() -> None:
    """Also more than the usual limit of open files."""
    words = ["sh", "-c", 'ulimit -Sn 64; exec "$@"', "sh", *STANDIN_RUN]
    words += ["--", "sh", "-c", "ulimit -n; read line"]
    process = start(words, stdin=subprocess.PIPE, env=standin("hold"))
    assert line_of(process) == "64"
    (keeper,) = keepers()
    wait_until(lambda: len(os.listdir(f"/proc/{keeper}/fd")) > 2000, "the keeper lacks some")
    assert process.communicate("\n", timeout=PATIENCE_SECONDS) == ("", "")
    assert process.returncode == 0


@pytest.mark.root
def test_idle_processes_do_not_wake(tmp_path: Path) -> None:
    process = start([*STANDIN_RUN, "--", "sh", "-c", "echo $$; read line"], stdin=subprocess.PIPE)
    line_of(process)
    pids = [process.pid, *keepers(), *engines()]
    wait_until(lambda: all(state(pid) == "S" for pid in pids), "they do not settle")
    before = [switches(pid) for pid in pids]
    select.select([], [], [], 1)
    assert [switches(pid) for pid in pids] == before
    process.communicate("\n", timeout=PATIENCE_SECONDS)


def switches(pid: int) -> int:
    return sum(map(int, re.findall(r"ctxt_switches:\t(\d+)", Path(f"/proc/{pid}/status").read_text())))
