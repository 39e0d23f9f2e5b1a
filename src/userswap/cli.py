# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line. Each verb lives in a module of its own, loaded when it is asked for."""

import argparse
import sys
from collections.abc import Sequence

from userswap.errors import EXIT_OWN_ERROR, UserswapError
from userswap.policies import AGES, OTHERS, OURS

TYPE_CHECKING = False  # typing costs a megabyte of memory, which counts
if TYPE_CHECKING:
    from typing import NoReturn

DESCRIPTION = "Swap for Linux programs, in user space: run a program in less memory than it needs."

RUN_DESCRIPTION = """\
Run COMMAND so that its memory and that of its children, together with the engine's own, stays under --ram.
What does not fit is swapped to the swap areas and comes back when it is touched."""

RUN_EPILOG = """\
SIZE is bytes, or a number with K, M, G or T (powers of 1024).
The exit status is that of COMMAND, or 128+N if signal N ended it; 125 if userswap failed,
126 if COMMAND cannot be executed, 127 if it is not found.

examples:
  userswap run --ram 512M -- python train.py
  userswap run --ram 50% --swap /scratch:20G --swap /dev/vdb -- make -j8"""

ATTACH_DESCRIPTION = """\
Give swap to the process PID, and to all that it starts from now on, so that their memory and the engine's
stays under --ram. Returns when it is done; the engine stays in the background until they have ended, or are
detached."""

SIMULATE_DESCRIPTION = """\
Say how many pages would have had to be brought in again by userswap's own policies and by others, in this and
other memories, had the program used its pages as FILE tells."""

RUN_OPTIONS_WITH_VALUE = ("--ram", "--swap", "--stats", "--policy", "--trace", "--entry-bits")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> "NoReturn":
        raise UserswapError(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"userswap {version('userswap')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserswapError as error:
        print(f"userswap: {error}", file=sys.stderr)
        return EXIT_OWN_ERROR


def _dispatch(words: list[str]) -> int:
    options, command = _split_command(words)
    chosen = _parser().parse_args(options)
    if chosen.verb == "doctor":
        from userswap import doctor

        return doctor.fix() if chosen.fix else doctor.doctor()
    if chosen.verb in ("status", "limit", "swapon", "swapoff", "detach", "upgrade"):
        return _control(chosen)
    if chosen.verb == "simulate":
        from userswap.simulate import simulate

        return simulate(chosen.file, chosen.policy, chosen.ram, chosen.json, chosen.plot)
    if chosen.verb == "attach":
        from userswap.attach import attach
        from userswap.request import Request

        return attach(Request(chosen, quiet=True), chosen.pid, chosen.tree)
    if not command:
        raise UserswapError("no command to run (see userswap run --help)")
    from userswap.request import Request
    from userswap.run import run

    return run(Request(chosen, chosen.quiet), command)


def _control(chosen: argparse.Namespace) -> int:
    from userswap import client

    if chosen.verb == "status":
        return client.status(chosen.json)
    if chosen.verb == "limit":
        return client.limit(chosen.size, chosen.engine)
    if chosen.verb == "swapon":
        return client.swapon(chosen.area, chosen.priority, chosen.engine)
    if chosen.verb == "detach":
        return client.detach(chosen.pid, chosen.tree)
    if chosen.verb == "upgrade":
        return client.upgrade(chosen.engine)
    return client.swapoff(chosen.area, chosen.engine)


def _split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """The options of `run`, and the command behind them, with or without `--`."""
    if not words or words[0] != "run":
        return words, []
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        at += 2 if words[at] in RUN_OPTIONS_WITH_VALUE else 1
    return words[:at], words[at + 1 :] if words[at : at + 1] == ["--"] else words[at:]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="userswap", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_run(verbs)
    _add_attach(verbs)
    detach = verbs.add_parser(
        "detach",
        help="bring back all that a process has swapped, and leave it as it was",
        allow_abbrev=False,
    )
    detach.add_argument("pid", type=_pid, metavar="PID")
    detach.add_argument("--tree", action="store_true", help="and all processes that it has started")
    _add_simulate(verbs)
    doctor = verbs.add_parser(
        "doctor", help="say what this machine can do, and how to fix what it cannot", allow_abbrev=False
    )
    doctor.add_argument(
        "--fix", action="store_true",
        help="let every user open /dev/userfaultfd, which is all that they lack: as root; else print how",
    )  # fmt: skip
    status = verbs.add_parser(
        "status", help="list the engines that run, and their swap areas", allow_abbrev=False
    )
    status.add_argument("--json", action="store_true", help="as JSON: an object with engines, a list")
    limit = verbs.add_parser("limit", help="give a running engine another --ram", allow_abbrev=False)
    limit.add_argument("size", metavar="SIZE", help="as for run --ram")
    swapon = verbs.add_parser("swapon", help="add a swap area to a running engine", allow_abbrev=False)
    swapon.add_argument(
        "area", metavar="AREA", help="PATH[:SIZE][:POLICY] or NAME://TEXT[:SIZE][:POLICY], as for run --swap"
    )
    swapon.add_argument("--priority", type=int, default=0, metavar="N", help="higher ones are used first (0)")
    swapoff = verbs.add_parser(
        "swapoff", help="empty a swap area of a running engine, and forget it", allow_abbrev=False
    )
    swapoff.add_argument("area", metavar="AREA", help="as it was given, or its number in status")
    upgrade = verbs.add_parser(
        "upgrade", help="have this version of userswap go on with what an engine of another one serves",
        allow_abbrev=False,
    )  # fmt: skip
    for verb in (limit, swapon, swapoff, upgrade):
        verb.add_argument("--engine", type=int, metavar="PID", help="which engine, if several run")
    return parser


def _add_run(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    run = verbs.add_parser(
        "run", help="run a program in less memory than it needs", allow_abbrev=False,
        usage="userswap run [--ram SIZE] [--swap AREA]... [--stats FILE] [--quiet] [--entry-bits 32|64] "
        "[--policy POLICY] [--trace FILE] [--encrypt] "
        "-- COMMAND [ARG]...",
        description=RUN_DESCRIPTION, epilog=RUN_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _add_engine_options(run)
    run.add_argument("--quiet", "-q", action="store_true", help="no summary line at the end")


def _add_attach(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    attach = verbs.add_parser(
        "attach", help="give swap to a process that runs already", allow_abbrev=False,
        description=ATTACH_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    attach.add_argument("pid", type=_pid, metavar="PID")
    attach.add_argument(
        "--tree", action="store_true", help="and all processes that it has started already; those that it "
        "starts from now on are served in any case",
    )  # fmt: skip
    _add_engine_options(attach)


def _add_simulate(verbs: "argparse._SubParsersAction[_Parser]") -> None:
    simulate = verbs.add_parser(
        "simulate", help="say what other policies or memories would have had to bring in, from traces",
        description=SIMULATE_DESCRIPTION, allow_abbrev=False,
    )  # fmt: skip
    simulate.add_argument("file", nargs="+", metavar="FILE", help="as run --trace has made it")
    simulate.add_argument(
        "--policy", action="append", default=[], metavar="POLICY", choices=(*OURS, *OTHERS),
        help=f"{', '.join((*OURS, *OTHERS))}; repeat it for more (default: all)",
    )  # fmt: skip
    simulate.add_argument(
        "--ram", action="append", default=[], metavar="SIZE",
        help="how much memory, or N%% of the most that was in use; repeat it for more "
        "(default: 100%%, 75%%, 50%%, 35%%, 25%%)",
    )  # fmt: skip
    simulate.add_argument("--json", action="store_true", help="as JSON: a list of files")
    simulate.add_argument(
        "--plot", metavar="FILE", help="draw it as well: as .svg, .png, or what else the name says"
    )


def _pid(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 22:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a process")
    return int(text)


def _add_engine_options(verb: _Parser) -> None:
    verb.add_argument(
        "--ram", default="auto", metavar="SIZE",
        help="how much memory; also N%% of the machine's memory, or auto, the default: "
        "80%% of the smaller of the cgroup's limit and the memory available",
    )  # fmt: skip
    verb.add_argument(
        "--swap", action="append", default=[], metavar="AREA",
        help="PATH[:SIZE][:keep|free]: a directory, a file or a block device; or NAME://TEXT[:SIZE]: a store "
        "in Python; repeat it for more, the first is used first "
        "(default: a temporary file in $TMPDIR or /var/tmp)",
    )  # fmt: skip
    verb.add_argument("--stats", metavar="FILE", help="write the counts of the run to FILE, as JSON")
    verb.add_argument(
        "--policy", default=AGES, choices=OURS, metavar="POLICY",
        help="what is evicted first: ages, the pages that have not been touched for longest, as far as that "
        "is known (default); behind, also what streams have just gone over, where that is seen to save reads",
    )  # fmt: skip
    verb.add_argument(
        "--trace", metavar="FILE", help="record what happens to pages in FILE, for userswap simulate"
    )
    verb.add_argument(
        "--encrypt", action="store_true",
        help="what goes to the swap areas, with a random key that lives and dies with the run",
    )  # fmt: skip
    verb.add_argument(
        "--entry-bits", type=int, default=64, choices=(32, 64),
        help="size of an entry of the swapper space: 32 takes half the memory, for at most 64G of swap (64)",
    )  # fmt: skip
