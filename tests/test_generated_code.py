# SPDX-License-Identifier: GPL-2.0-or-later
"""What Cython makes of the data plane: no function of it can take the GIL. And engine.pyi is true.

A `cdef` function without `noexcept` that returns -1 takes the GIL to look for an exception. One that has a
way to an exception in it, if only by indexing a constant of bytes, takes it to report one. In a fault handler
that is a deadlock.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "userswap"
FORBIDDEN = ("__Pyx_ErrOccurredWithGIL", "__Pyx_WriteUnraisable", "PyGILState_Ensure", "__Pyx_GetItemInt")
FUNCTION = re.compile(r"^static [^;{}#]*?(?P<name>__pyx_f_\w+)\([^;{}]*\) \{\n(?P<body>.*?)^\}$", re.M | re.S)
COMMENT = re.compile(r"/\*.*?\*/", re.S)


def meson_list(name: str, brackets: str) -> str:
    """The text of a list or dictionary of src/userswap/meson.build."""
    found = re.search(
        rf"^{name} = \{brackets[0]}(.*?)\{brackets[1]}$", (SOURCE / "meson.build").read_text(), re.M | re.S
    )
    assert found is not None
    return found[1]


def data_plane() -> list[str]:
    modules = re.findall(r"^  '(\w+)':", meson_list("modules", "{}"), re.M)
    return [name for name in modules if name != "engine" and not name.endswith("_door")]


def as_built(source: Path) -> Path | None:
    """The C that Cython has made of a file for the installed package, if the file has not changed since."""
    changed = max(path.stat().st_mtime for path in [source, *SOURCE.glob("*.pxd")])
    built = ROOT.glob(f"build/src/userswap/{source.stem}.*.p/{source.name}.c")
    return next((path for path in built if path.stat().st_mtime > changed), None)


def functions_of(source: Path, folder: Path) -> dict[str, str]:
    """The bodies of the cdef functions in the C that Cython makes of a file, with meson.build's flags."""
    made = as_built(source) or make(source, folder / "made.c")
    text = COMMENT.sub("", made.read_text())
    return {found["name"]: found["body"] for found in FUNCTION.finditer(text)}


def make(source: Path, made: Path) -> Path:
    flags = re.findall(r"'(-[^']+)'", meson_list("cython_args", "[]").replace("'-I'", ""))
    assert "-Xcdivision=True" in flags
    command = [sys.executable, "-m", "cython", *flags, "-I", str(ROOT / "src"), str(source), "-o", str(made)]
    subprocess.run(command, check=True, timeout=120)
    return made


def takes_gil(functions: dict[str, str]) -> list[str]:
    return sorted(f"{name}: {word}" for name, body in functions.items() for word in FORBIDDEN if word in body)


def declared(source: Path) -> set[str]:
    """The cdef functions that a file defines."""
    lines = source.read_text().splitlines()
    matches = [re.match(r"cdef (?!extern|struct|enum|class|inline)[^=]*?(\w+)\(", line) for line in lines]
    return {found[1] for found in matches if found}


@pytest.mark.parametrize("name", data_plane())
def test_no_function_of_the_data_plane_can_take_the_gil(tmp_path: Path, name: str) -> None:
    functions = functions_of(SOURCE / f"{name}.pyx", tmp_path)
    for function in declared(SOURCE / f"{name}.pyx"):
        assert any(found.endswith(function) for found in functions), f"{function} was not found in the C"
    assert takes_gil(functions) == []


def test_the_data_plane_is_all_that_is_built() -> None:
    """A new module is looked at without being named here."""
    assert {"space", "log", "fault", "evict", "monitor"} <= set(data_plane())
    built = {path.stem for path in SOURCE.glob("*.pyx")}
    assert built - set(data_plane()) == {"engine", *(name for name in built if name.endswith("_door"))}


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("cdef int f(int x) nogil:\n    return g(x)\n", "__Pyx_ErrOccurredWithGIL"),
        ("cdef int f(int x) noexcept nogil:\n    return g(x)\n", "__Pyx_WriteUnraisable"),
        ("cdef void f(int x) noexcept nogil:\n    with gil:\n        print(x)\n", "PyGILState_Ensure"),
        ('cdef int f(char x) noexcept nogil:\n    return x == b"Z"[0]\n', "__Pyx_GetItemInt"),
    ],
)
def test_such_code_is_found(tmp_path: Path, code: str, word: str) -> None:
    """The test above would see it."""
    source = tmp_path / "bad.pyx"
    source.write_text("cdef int g(int x) nogil:\n    return -1 if x else 0\n\n\n" + code)
    found = takes_gil(functions_of(source, tmp_path))
    assert any("_f:" in line and word in line for line in found), found


# ---- types

# Cython makes these, and marks no class; no one calls them.
ALLOWED = r""".*\.__(reduce|setstate)_cython__
.*\.__test__
"""


@pytest.mark.parametrize("name", ["engine", "tests_door"])
def test_the_types_of_a_door_are_true(tmp_path: Path, name: str) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text(ALLOWED)
    command = [sys.executable, "-m", "mypy.stubtest", "--concise", "--ignore-disjoint-bases"]
    command += ["--allowlist", str(allowed), "--ignore-unused-allowlist", f"userswap.{name}"]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
