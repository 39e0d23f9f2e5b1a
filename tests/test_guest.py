# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine in a quarter of its memory: what its guest zeroes is not written, what it gives back
leaves the swap areas. Neither QEMU nor the guest knows of userswap. The guest checks all its memory."""

from pathlib import Path

from guest import AREA_PAGES, GIVEN_PAGES, GUEST_MIB, RAM, Counts, Guest, booted
from support import MIB, Programs, Runner, Verbs, rise, wait_until

PAGE = 4096
RAM_PAGES = RAM // PAGE


def tell(what: str, before: Counts, after: Counts) -> None:
    """For bench/RESULTS.md: what became of the memory between two looks, in MiB."""
    pages = {name: rise(before, after, f"pages_{name}") * PAGE for name in ("evicted", "filled", "discarded")}
    moved = {way: rise(before, after, f"store_bytes_{way}") for way in ("written", "read")}
    held = {
        f"{name} {then}": counts[f"{name}_bytes"]
        for name in ("swap", "resident")
        for then, counts in (("before", before), ("after", after))
    }
    print(what, {name: round(size / MIB) for name, size in {**pages, **moved, **held}.items()})


def test_what_a_guest_zeroes_is_not_written(
    userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path
) -> None:
    """Half of the pages are zeros, half a repeated word of their own. All go out again and again."""
    out = AREA_PAGES - RAM_PAGES  # at least so many of the pages are out at any time
    with booted(userswap, programs, verbs, tmp_path) as guest:
        guest.order("fill", "filled")
        filled = guest.settled()
        guest.order("zero", "zeroed")
        zeroed = guest.settled()
        guest.order("zero", "zeroed")
        again = guest.settled()
        guest.order("check", "checked")
        checked = guest.settled()
        run = guest.off()
    tell("zeroed", filled, zeroed)
    tell("zeroed again", zeroed, again)
    tell("checked", again, checked)
    assert rise(filled, zeroed, "pages_filled") > out, run.describe()
    assert zeroed["swap_bytes"] < filled["swap_bytes"] / 2, run.describe()
    # From here on there is nothing but one repeated word to evict, besides the guest's own kernel.
    evicted = rise(zeroed, checked, "pages_evicted")
    assert evicted > 2 * out, run.describe()
    assert rise(zeroed, again, "pages_filled") > out, run.describe()
    assert rise(zeroed, checked, "store_bytes_written") < evicted * PAGE / 25, run.describe()
    assert rise(again, checked, "pages_in") > out, run.describe()
    assert rise(again, checked, "store_bytes_read") < out * PAGE / 25, run.describe()


def fill_and_free(guest: Guest) -> Counts:
    """The counts of before the guest frees memory that QEMU, and so userswap, believes to be in use."""
    guest.order("fill", "filled")
    before = guest.settled()
    guest.order("give", "given")
    return before


def gone(before: Counts, after: Counts) -> float:
    """How many pages have gone, swapped or not."""
    return rise(before, after, "pages_discarded") - rise(before, after, "resident_bytes") / PAGE


def check_given(before: Counts, after: Counts, pages: int) -> None:
    """Of `pages`, those that were swapped went with their entries and slots; none of them was written."""
    tell("given back", before, after)
    given = rise(before, after, "pages_discarded")
    assert given > pages - RAM_PAGES, (before, after)
    assert gone(before, after) > 0.9 * pages, (before, after)
    assert rise(before, after, "entries") <= rise(before, after, "pages_evicted") - given, (before, after)
    freed = -rise(before, after, "swap_bytes") / before["swap_bytes"]
    assert freed > 0.8 * given / before["entries"], (before, after)
    evicted = rise(before, after, "pages_evicted") * PAGE  # of the guest's kernel, and for the memory tier
    assert evicted < given * PAGE / 4, (before, after)
    # And what was evicted before, and waited for its block to fill.
    assert rise(before, after, "store_bytes_written") < evicted + given * PAGE / 10, (before, after)


def test_free_page_reporting(userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path) -> None:
    """The guest's kernel tells of free memory, 2 MiB and more at a time, every two seconds some of it."""
    device = "virtio-balloon-pci,free-page-reporting=on"
    with booted(userswap, programs, verbs, tmp_path, [device]) as guest:
        before = fill_and_free(guest)
        wait_until(
            lambda: gone(before, guest.counts()) > 0.9 * GIVEN_PAGES,
            60,
            "the guest has told of what it freed",
        )
        check_given(before, guest.settled(), GIVEN_PAGES)
        guest.order("fill", "filled")
        guest.off()


def test_balloon(userswap: Runner, programs: Programs, verbs: Verbs, tmp_path: Path) -> None:
    """The balloon takes free memory of the guest, which QEMU gives back page by page."""
    taken_mib = 300
    with booted(userswap, programs, verbs, tmp_path, ["virtio-balloon-pci"]) as guest:
        before = fill_and_free(guest)
        freed = guest.settled()
        assert rise(before, freed, "pages_discarded") < 100, "nobody has told userswap yet"
        guest.balloon(GUEST_MIB - taken_mib)
        check_given(freed, guest.settled(), taken_mib * MIB // PAGE)
        guest.balloon(GUEST_MIB)
        guest.order("fill", "filled")
        guest.off()
