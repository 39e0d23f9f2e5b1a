# SPDX-License-Identifier: GPL-2.0-or-later
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from userswap import doctor
from userswap.errors import UserswapError


def userswap(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "userswap", *words], capture_output=True, text=True, check=False
    )


def unprivileged(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as nobody. Python itself may be readable by root only: it is loaded before."""
    load = "import os; from userswap import doctor; [look() for look in doctor.ALL]"
    script = f"{load}; os.setgid(65534); os.setuid(65534)\n{code}"
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.root
def test_works_for_root() -> None:
    done = userswap("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert done.stdout.endswith("userswap run works here\n")
    for name in ("machine", "userfaultfd", "UFFDIO_MOVE", "forks", "ptrace scope", "seccomp filter",
                 "PAGEMAP_SCAN", "PROCMAP_QUERY", "open files", "real time", "memory", "cgroup limit",
                 "default swap area", "encryption"):  # fmt: skip
        assert f"  {name} " in done.stdout


@pytest.mark.root
def test_says_what_nobody_lacks_and_the_fix() -> None:
    done = unprivileged("raise SystemExit(doctor.doctor())")
    lines = done.stdout.splitlines()
    assert any(line.startswith("less  real time") for line in lines), done
    closed = os.stat("/dev/userfaultfd").st_mode & 0o006 != 0o006
    assert done.returncode == closed
    assert any(line.startswith("less  forks") for line in lines) or closed
    if closed:
        assert "userswap run does not work here: " in lines[-1]
        assert any(line.startswith("FAIL  userfaultfd") for line in lines)
        assert "fix: as root, once: userswap doctor --fix" in done.stdout


@pytest.mark.root
@pytest.mark.skipif(os.stat("/dev/userfaultfd").st_mode & 0o006 == 0o006, reason="nothing is refused")
def test_run_refuses_in_the_same_words() -> None:
    done = unprivileged("doctor.refuse_unfit_machine()")
    assert done.returncode == 1
    table = unprivileged("doctor.doctor()").stdout
    refusal = done.stderr.splitlines()[-1].partition("UserswapError: ")[2]
    name, found, meaning = refusal.split(": ", 2)
    assert name in table
    assert found in table
    assert meaning.removesuffix(" (userswap doctor says how to fix it)") in table


@pytest.mark.root
def test_user_mode_only_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "open_userfaultfd", lambda: (doctor._USER_MODE, os.dup(0)))
    check = doctor.check_userfaultfd()
    assert check.state == doctor.FAIL
    assert "EFAULT" in check.meaning


def test_kernel_without_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "userfaultfd_features", lambda asked=0: 0x1FF)
    check = doctor.check_move()
    assert (check.state, check.found) == (doctor.FAIL, "not there")
    monkeypatch.setattr(doctor, "NEEDED", (doctor.check_machine, doctor.check_move))
    with pytest.raises(UserswapError, match="UFFDIO_MOVE: not there"):
        doctor.refuse_unfit_machine()


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.18.0", "#1", "aarch64")))
    check = doctor.check_machine()
    assert check.state == doctor.FAIL
    assert "aarch64" in check.found


@pytest.mark.parametrize(("scope", "capable", "state"), [
    ("0", False, "ok"), ("1", False, "ok"), ("2", True, "ok"), ("2", False, "FAIL"), ("3", True, "FAIL"),
])  # fmt: skip
def test_ptrace_scope(
    scope: str, capable: bool, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "has_capability", lambda number: capable)
    path = tmp_path / "ptrace_scope"
    path.write_text(scope + "\n")
    check = doctor.check_ptrace_scope(str(path))
    assert check.state == state
    assert bool(check.fix) == (state != "ok")


def test_without_yama(tmp_path: Path) -> None:
    assert doctor.check_ptrace_scope(str(tmp_path / "none")).state == doctor.OK


# ---- --fix


@pytest.mark.root
def test_fix_lets_every_user_open_the_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device, rules = tmp_path / "userfaultfd", tmp_path / "rules.d"
    os.mknod(device, stat.S_IFCHR | 0o600, os.stat(doctor.DEVICE).st_rdev)
    rules.mkdir()
    assert doctor.fix(str(device), str(rules)) == 0
    assert device.stat().st_mode & 0o777 == 0o666
    assert (rules / doctor.RULE_NAME).read_text() == 'KERNEL=="userfaultfd", MODE="0666"\n'
    capsys.readouterr()
    assert doctor.fix(str(device), str(rules)) == 0
    assert "already" in capsys.readouterr().out


@pytest.mark.root
def test_fix_without_udev(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = tmp_path / "userfaultfd"
    os.mknod(device, stat.S_IFCHR | 0o600, os.stat(doctor.DEVICE).st_rdev)
    assert doctor.fix(str(device), str(tmp_path / "none")) == 0
    assert "until the next start" in capsys.readouterr().out
    with pytest.raises(UserswapError, match="No such file"):
        doctor.fix(str(tmp_path / "nothing"), str(tmp_path))


@pytest.mark.root
def test_who_may_not_fix_it_is_told_how() -> None:
    done = unprivileged("raise SystemExit(doctor.fix())")
    if os.stat(doctor.DEVICE).st_mode & 0o006 == 0o006:
        assert done.returncode == 0
    else:
        assert done.returncode == 1
        assert done.stdout.startswith("as root, once:\nchmod 666 /dev/userfaultfd\n"), done
