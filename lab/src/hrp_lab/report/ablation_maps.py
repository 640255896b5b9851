"""Shows ablations over preheating's rank and steps: heat maps, and a row for each level."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure

from hrp.report.figures import drawn, heat_map, plain
from hrp.report.table import Table, number
from hrp_lab.bench.ablation import FACTORS, Grid, contrasts, grids
from hrp_lab.bench.comparisons import Analysis
from hrp_lab.report.plots import judged_by


def caption(analysis: Analysis, arm: str) -> str:
    """Return the caption of the heat map of ``arm``."""
    return (
        f"{analysis.view.title}, {arm}: {analysis.metric} over preheating rank and steps, each "
        "cell at its best learning rate, mean ± sd over seeds (?: rate not settled). One scale "
        "for all maps of the view: blue is better than the control, red worse"
    )


def heat_maps(analysis: Analysis) -> dict[str, Figure]:
    """Draw a heat map for each arm, all on one diverging scale with the control at its centre."""
    arm_grids = grids(analysis)
    if not arm_grids:
        return {}
    means = [analysis.best[label].mean for grid in arm_grids for label in grid.labels.values()]
    control = analysis.best.get(analysis.control)
    centre = control.mean if control else float(np.median(means))
    reach = max(abs(mean - centre) for mean in means)
    named = f"{analysis.control} {number(centre)}" if control else f"median {number(centre)}"
    scale = centre, reach or 1.0
    return {grid.arm: _heat_map(analysis, grid, scale, named) for grid in arm_grids}


def _heat_map(analysis: Analysis, grid: Grid, scale: tuple[float, float], centre: str) -> Figure:
    rows, columns = grid.levels
    values = np.full((len(rows), len(columns)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for (row, column), label in grid.labels.items():
        cell = rows.index(row), columns.index(column)
        values[cell], texts[cell] = analysis.best[label].mean, _cell(analysis, label)
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
    """Compare each level of each factor, all its cells, with the control; None without a grid."""
    rows = [
        (
            level.arm, level.factor, level.level, str(level.cells),
            f"{level.difference:+.4f} [{level.interval[0]:+.4f}, {level.interval[1]:+.4f}]",
        )
        for grid in grids(analysis)
        for level in contrasts(analysis, grid)
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
