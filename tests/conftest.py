# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests that run whole programs."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import Attachable, Programs, Runner, Verbs, privileged


def pytest_configure() -> None:
    """Whoever ends the tests by SIGTERM, such as timeout(1), leaves no program of theirs running either."""
    # In the background of a script SIGINT is ignored, and would be by all programs of theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: pytest.exit("terminated", 128 + number))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Binaries of tests/programs, compiled on demand."""
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def capable() -> Callable[[], None]:
    """Checks once whether userswap can run here. A lack fails where everything has to run, else skips."""
    command = [sys.executable, "-m", "userswap", "run", "--quiet", "--ram", "512M", "--", "true"]
    probe = subprocess.run(command, capture_output=True, text=True, timeout=60)

    def check() -> None:
        if probe.returncode == 0:
            return
        message = f"userswap cannot run here: status {probe.returncode}: {probe.stderr}"
        if privileged():
            pytest.fail(message)
        pytest.skip(message)

    return check


@pytest.fixture
def native(programs: Programs, tmp_path: Path) -> Runner:
    """Runs programs without userswap."""
    return Runner(programs, tmp_path)


@pytest.fixture
def userswap(capable: Callable[[], None], programs: Programs, tmp_path: Path) -> Runner:
    """Runs programs under userswap."""
    capable()
    return Runner(programs, tmp_path)


@pytest.fixture
def verbs(tmp_path: Path) -> Verbs:
    return Verbs(tmp_path)


@pytest.fixture
def started() -> Iterator[list[Attachable]]:
    programs: list[Attachable] = []
    yield programs
    for program in programs:
        program.process.kill()
        with contextlib.suppress(ValueError):
            program.process.communicate(timeout=30)


@pytest.fixture
def disk() -> Iterator[Path]:
    """Not pytest's folder, which may be on a tmpfs: that has no O_DIRECT."""
    with tempfile.TemporaryDirectory(prefix="userswap-stores-", dir="/var/tmp") as folder:
        yield Path(folder)
