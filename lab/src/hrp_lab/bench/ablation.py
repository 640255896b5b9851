"""Arrange an arm's configurations over two ablated settings, and say what each level gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hrp_lab.bench.comparisons import Analysis, setting, shown_arm
from hrp_lab.bench.stats import LEVEL, Pool

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


@dataclass(frozen=True)
class Contrast:
    """Holds the mean of a level's cells minus the control, paired by seed.

    Args:
        cells: number of cells, one for each level of the other factor.
        interval: 95 % t interval, for this contrast alone.
    """

    arm: str
    factor: str
    level: str
    cells: int
    difference: float
    interval: tuple[float, float]


def contrasts(analysis: Analysis, grid: Grid) -> list[Contrast]:
    """Compare with the control each level of both factors whose cells all have a verdict.

    Cells are the arm's at their best rates, weighted alike. There are no contrasts where the
    control has no verdict.
    """
    pool = analysis.pool
    if pool is None or analysis.control not in pool.arms | pool.outliers:
        return []
    judged = []
    for axis, factor in enumerate(FACTORS):
        others = grid.levels[1 - axis]
        for level in grid.levels[axis]:
            cells = [(level, other) if axis == 0 else (other, level) for other in others]
            labels = [grid.labels[cell] for cell in cells if cell in grid.labels]
            if len(labels) == len(others) and set(labels) <= pool.arms | pool.outliers:
                numbers = _contrast(analysis, pool, labels)
                judged.append(Contrast(grid.arm, factor, level, len(labels), *numbers))
    return judged


def _contrast(
    analysis: Analysis, pool: Pool, labels: list[str]
) -> tuple[float, tuple[float, float]]:
    values = {
        label: np.array([analysis.best[label].values[seed] for seed in pool.seeds])
        for label in (*labels, analysis.control)
    }
    level = np.mean([values[label] for label in labels], axis=0)
    weighted = level - values[analysis.control]
    error, degrees = pool.standard_error(weighted, set(values), weight=1 + 1 / len(labels))
    mean, half = float(weighted.mean()), float(stats.t.isf(LEVEL / 2, degrees)) * error
    return mean, (mean - half, mean + half)
