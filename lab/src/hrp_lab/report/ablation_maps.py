"""Ablations over preheating's rank and steps: heat maps on one scale, and a row a level."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from hrp.report.figures import drawn, heat_map, judged_by, plain
from hrp.report.table import Table, number
from hrp_lab.bench.ablation import FACTORS, Grid, contrasts, grids
from hrp_lab.bench.comparisons import Analysis


def caption(analysis: Analysis, arm: str) -> str:
    """What a heat map of `heat_maps` shows."""
    return (
        f"{analysis.view.title}, {arm}: {analysis.metric} over preheating rank and steps, each "
        "cell at its best learning rate, mean ± sd over seeds (?: rate not settled). One scale "
        "for all maps of the view: blue is better than the control, red worse"
    )


def heat_maps(analysis: Analysis) -> dict[str, Figure]:
    """A heat map by arm, all on one diverging scale with the control at its centre."""
    found = grids(analysis)
    if not found:
        return {}
    means = [analysis.best[label].mean for grid in found for label in grid.labels.values()]
    control = analysis.best.get(analysis.control)
    centre = control.mean if control else float(np.median(means))
    reach = max(abs(mean - centre) for mean in means)
    named = f"{analysis.control} {number(centre)}" if control else f"median {number(centre)}"
    return {grid.arm: _heat_map(analysis, grid, (centre, reach or 1.0), named) for grid in found}


def _heat_map(analysis: Analysis, grid: Grid, scale: tuple[float, float], centre: str) -> Figure:
    rows, columns = grid.levels
    values = np.full((len(rows), len(columns)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for (row, column), label in grid.labels.items():
        place = rows.index(row), columns.index(column)
        values[place], texts[place] = analysis.best[label].mean, _cell(analysis, label)
    with drawn(height=1.5 + 0.44 * len(rows)) as figure:
        label = judged_by(plain(analysis.metric), analysis.sense, 30)
        axes = heat_map(
            figure, values, rows, columns, label, texts,
            norm=CenteredNorm(*scale), cmap="RdBu_r" if analysis.minimise else "RdBu",
        )  # fmt: skip
        axes.set_title(f"{plain(grid.arm)}; white is {plain(centre)}")
        axes.set_ylabel(FACTORS[0].replace("_", " "))
        axes.set_xlabel(FACTORS[1].replace("_", " "))
        return figure


def _cell(analysis: Analysis, label: str) -> str:
    best = analysis.best[label]
    mark = "" if best.overtaken_by(analysis.minimise) is None else "?"
    spread = f"\n±{number(best.spread)}" if np.isfinite(best.spread) else ""
    return f"{number(best.mean)}{mark}{spread}"


def levels_table(analysis: Analysis) -> Table | None:
    """A row for each level of each factor, its cells together against the control; None without."""
    rows = [
        (
            one.arm, one.factor, one.level, str(one.cells),
            f"{one.difference:+.4f} [{one.interval[0]:+.4f}, {one.interval[1]:+.4f}]",
        )
        for grid in grids(analysis)
        for one in contrasts(analysis, grid)
    ]  # fmt: skip
    header = ("arm", "factor", "level", "cells", f"minus {analysis.control} [95 % CI]")
    words = (
        f"Each level of a factor: {analysis.metric}, mean over the levels of the other factor, "
        f"each cell at its best learning rate, minus {analysis.control}, paired by seed; "
        f"{analysis.sense}. t intervals, by the same pooled variance as the arms' table, "
        "each for its row alone and not corrected: a reading of the grid, no verdict. Levels "
        "without all their cells are left out."
    )
    return Table(words, header, tuple(rows)) if rows else None
