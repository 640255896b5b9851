"""Shows ablations over preheating's rank and steps: heat maps, and a row for each level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from scipy import stats

from hrp.report.figures import drawn, heat_map, plain
from hrp.report.table import Table, number
from hrp_lab.bench.comparisons import Analysis, setting, shown_arm
from hrp_lab.bench.stats import LEVEL, Pool
from hrp_lab.report.plots import judged_by

FACTORS = ("preheat_rank", "preheat_steps")


@dataclass(frozen=True)
class Grid:
    """Holds an arm's configurations over `FACTORS`.

    Args:
        levels: of both factors, ascending.
        labels: the analysis's labels by cell (a level of each); cells that were not run are
            missing.
    """

    arm: str
    levels: tuple[tuple[str, ...], tuple[str, ...]]
    labels: Mapping[tuple[str, str], str]


def grids(analysis: Analysis) -> list[Grid]:
    """Return a view's grids; an arm whose configurations differ in more than `FACTORS` has none."""
    by_arm: dict[str, list[tuple[tuple[str, str], str]]] = {}
    for label in analysis.best:
        record = analysis.records_of(label)[0]
        cell = str(setting(record, FACTORS[0])), str(setting(record, FACTORS[1]))
        by_arm.setdefault(shown_arm(record), []).append((cell, label))
    all_grids = []
    for arm, cells in sorted(by_arm.items()):
        labels = dict(cells)
        first, second = (tuple(sorted({c[axis] for c in labels}, key=_by_size)) for axis in (0, 1))
        if len(labels) == len(cells) and min(len(first), len(second)) > 1:
            all_grids.append(Grid(arm, (first, second), labels))
    return all_grids


def _by_size(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


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
    mark = "" if best.overtaken_by is None else "?"
    spread = f"\n±{number(best.spread)}" if np.isfinite(best.spread) else ""
    return f"{number(best.mean)}{mark}{spread}"


def levels_table(analysis: Analysis) -> Table | None:
    """Compare each level of each factor, all its cells, with the control; None without a grid.

    There is no row where the control, or a cell of the level, has no verdict.
    """
    pool, rows = analysis.pool, []
    judged = set(pool.values) if pool else set()
    for grid in grids(analysis):
        for axis, factor in enumerate(FACTORS):
            others = grid.levels[1 - axis]
            for level in grid.levels[axis]:
                cells = [(level, other) if axis == 0 else (other, level) for other in others]
                labels = [grid.labels[cell] for cell in cells if cell in grid.labels]
                if pool and len(labels) == len(others) and judged >= {*labels, analysis.control}:
                    mean, half = _contrast(pool, labels, analysis.control)
                    shown = f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"
                    rows.append((grid.arm, factor, level, str(len(labels)), shown))
    header = ("arm", "factor", "level", "cells", f"minus {analysis.control} [95 % CI]")
    words = (
        f"Each level of a factor: {analysis.metric}, mean over the levels of the other factor, "
        f"each cell at its best learning rate, minus {analysis.control}, paired by seed; "
        f"{analysis.sense}. t intervals, by the same pooled variance as the arms' table, "
        "each for its row alone and not corrected: a reading of the grid, no verdict. Levels "
        "without all their cells are left out."
    )
    return Table(words, header, tuple(rows)) if rows else None


def _contrast(pool: Pool, labels: list[str], control: str) -> tuple[float, float]:
    """Return the mean over cells minus the control, and half its 95 % t interval."""
    weighted = np.mean([pool.values[label] for label in labels], axis=0) - pool.values[control]
    error, degrees = pool.standard_error(weighted, {*labels, control}, weight=1 + 1 / len(labels))
    return float(weighted.mean()), float(stats.t.isf(LEVEL / 2, degrees)) * error
