# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots of slowdown over memory: one for each workload, and one of all."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot

from bench.figures import Figures


def _curves(figures: Figures, workloads: Sequence[str], title: str, file: Path) -> None:
    figure, axes = matplotlib.pyplot.subplots(figsize=(6, 4), layout="constrained")
    for side in figures.sides():
        if side == "none":
            continue
        points = [(share, figures.mean(workloads, side, "none", share)) for share in figures.shares()]
        known = [(share, slowdown) for share, slowdown in points if slowdown is not None]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", label=side)
    axes.set(title=title, xlabel="memory, % of what it needs", ylabel="times as slow as without a limit")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(file)
    matplotlib.pyplot.close(figure)


def write(figures: Figures, folder: Path) -> None:
    """One SVG for each workload, by its first phase; `summary.svg` has the geometric means of all."""
    folder.mkdir(parents=True, exist_ok=True)
    for workload in figures.workloads():
        _curves(figures, [workload], workload, folder / f"{workload}.svg")
    _curves(figures, figures.workloads(), "all, geometric mean", folder / "summary.svg")
