# SPDX-License-Identifier: GPL-2.0-or-later
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from userswap import cli, statistics
from userswap.errors import UserswapError
from userswap.request import Request


def userswap(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "userswap", *words], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("words", "options", "command"),
    [
        (["run", "--ram", "1G", "--", "ls", "-l"], ["run", "--ram", "1G"], ["ls", "-l"]),
        (["run", "ls", "--ram"], ["run"], ["ls", "--ram"]),
        (["run", "-q", "sh", "-c", "x", "--", "y"], ["run", "-q"], ["sh", "-c", "x", "--", "y"]),
        (["run", "--", "--", "x"], ["run"], ["--", "x"]),
        (["run", "--ram=1G", "ls"], ["run", "--ram=1G"], ["ls"]),
        (["run", "--entry-bits", "32", "ls"], ["run", "--entry-bits", "32"], ["ls"]),
        (["run", "--swap", "--", "ls"], ["run", "--swap", "--"], ["ls"]),
        (["run", "--help"], ["run", "--help"], []),
        (["run"], ["run"], []),
        (["doctor"], ["doctor"], []),
        ([], [], []),
    ],
)
def test_command_is_split_from_options(words: list[str], options: list[str], command: list[str]) -> None:
    assert cli._split_command(words) == (options, command)


def test_options_reach_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Request, list[str]]] = []

    def run(request: Request, command: list[str]) -> int:
        seen.append((request, command))
        return 7

    monkeypatch.setattr("userswap.run.run", run)
    words = [
        "run",
        "--ram",
        "1G",
        "--swap",
        "/a",
        "--swap",
        "/b:2G",
        "--stats",
        "f",
        "--quiet",
        "--entry-bits",
        "32",
        "--encrypt",
        "--",
        "ls",
        "-l",
    ]
    assert cli.main(words) == 7
    assert cli.main(["run", "ls"]) == 7
    (full, command), (bare, _) = seen
    assert (full.ram, full.swap, full.stats, full.quiet) == ("1G", ["/a", "/b:2G"], "f", True)
    assert command == ["ls", "-l"]
    assert (full.entry_bits, bare.entry_bits) == (32, 64)
    assert (full.encrypt, bare.encrypt) == (True, False)
    assert (bare.ram, bare.swap, bare.stats, bare.quiet) == ("auto", [], None, False)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "VERB"),
        (["frobnicate"], "frobnicate"),
        (["run"], "no command"),
        (["run", "--"], "no command"),
        (["run", "--ram", "1G"], "no command"),
        (["run", "--rams", "1G", "true"], "--rams"),
        (["run", "--ra", "1G", "true"], "--ra"),
        (["run", "--ram"], "--ram"),
        (["run", "--entry-bits", "--", "true"], "--entry-bits"),
        (["run", "--entry-bits", "16", "--", "true"], "--entry-bits: invalid choice: 16"),
        (["run", "--entry-bits", "few", "--", "true"], "--entry-bits: invalid int value: 'few'"),
        (["run", "--ram", "0", "--", "true"], "'0' is zero"),
        (["run", "--ram", "-1G", "--", "true"], "--ram"),
        (["run", "--ram=-1G", "--", "true"], "is negative"),
        (["run", "--ram", "lots", "--", "true"], "'lots' is not a size"),
        (["run", "--ram", "200%", "--", "true"], "between 0% and 100%"),
        (["run", "--swap", "/nowhere/x:1G", "--", "true"], "No such file"),
        (["run", "--stats", "/nowhere/x", "--", "true"], "is not a directory"),
        (["run", "--stats", "/dev/null", "--", "true"], "not a regular file"),
        (["doctor", "now"], "now"),
    ],
)
def test_refusals_are_one_line_and_125(words: Sequence[str], what: str) -> None:
    done = userswap(*words)
    assert done.returncode == 125
    assert done.stdout == ""
    assert re.fullmatch(r"userswap: [^\n]+\n", done.stderr), done.stderr
    assert what in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["run", "-h"], ["doctor", "--help"]])
def test_help(words: list[str]) -> None:
    done = userswap(*words)
    assert done.returncode == 0
    assert "usage: userswap" in done.stdout


def test_help_of_run_says_all_options_and_statuses() -> None:
    text = userswap("run", "--help").stdout
    statuses = ("125", "126", "127", "128+N")
    for word in ("--ram", "--swap", "--stats", "--quiet", "--entry-bits", "auto", "80%", *statuses):
        assert word in text


def test_version() -> None:
    done = userswap("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"userswap \d+\.\d+\.\d+\n", done.stdout)


def test_run_needs_no_large_modules() -> None:
    """What `run` loads stays in memory twice, inside --ram."""
    code = "import sys; import userswap.cli, userswap.run; print(*sys.modules)"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split())
    assert not loaded & {
        "typing",
        "dataclasses",
        "inspect",
        "json",
        "subprocess",
        "threading",
        "tempfile",
        "logging",
    }


COUNTS: dict[str, int | float] = {
    **dict.fromkeys((name for name in statistics.FIELDS if name != "processes_left_alone"), 0),
    "ram_limit_bytes": 256 << 20,
    "peak_resident_bytes": 255 << 20,
    "wall_seconds": 12.34,
}


def test_summary_without_swap() -> None:
    assert statistics.summary(COUNTS, []) == "12.3 s, peak 255.0 MiB of 256.0 MiB; nothing was swapped"


def test_summary_names_who_was_left_alone() -> None:
    line = statistics.summary(
        {**COUNTS, "pages_evicted": 512, "pages_in": 256, "faults": 3}, [(7, "su", "setuid")]
    )
    assert "out 2.0 MiB" in line
    assert "in 1.0 MiB by 3 faults" in line
    assert line.endswith("; left alone: su (7, setuid)")
    assert "\n" not in line


def test_json_holds_every_documented_field(tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    statistics.write(str(path), COUNTS, [(7, "su", "setuid")])
    document = json.loads(path.read_text())
    assert list(document) == list(statistics.FIELDS)
    assert document["processes_left_alone"] == [{"pid": 7, "name": "su", "why": "setuid"}]
    assert [entry.name for entry in tmp_path.iterdir()] == ["stats.json"]


def test_statistics_are_documented_as_they_are() -> None:
    text = (Path(__file__).parent.parent / "docs" / "statistics.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text, re.MULTILINE))
    assert rows == statistics.FIELDS


def test_stats_path_is_made_absolute_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert statistics.check_writable("x.json") == str(tmp_path / "x.json")
    (tmp_path / "link").symlink_to("target")
    assert statistics.check_writable("link") == str(tmp_path / "target")
    with pytest.raises(UserswapError, match="not a regular file"):
        statistics.check_writable(".")
    with pytest.raises(UserswapError, match="No such file"):
        statistics.write("/proc/self/none/x", {}, [])
    os.mkfifo("fifo")
    with pytest.raises(UserswapError, match="not a regular file"):
        statistics.check_writable("fifo")
