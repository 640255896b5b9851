"""Compute which share of the gap to an oracle each arm closes, with Fieller's limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hrp_lab.bench.stats import CONTROL, LEVEL, Pool, paired_differences
from hrp_lab.bench.sweeps import Best


@dataclass(frozen=True)
class Share:
    """Holds the share of a gap that an arm closes; ``low`` and ``high`` are its 95 % limits."""

    share: float
    low: float
    high: float


def gap_closed(
    best: Mapping[str, Best], shared: Pool, oracle: str, control: str = CONTROL
) -> dict[str, Share]:
    """Return, by arm, the share of the way from ``control`` to ``oracle`` that it goes.

    With f = (control - arm) / (control - oracle), the limits are Fieller's (1954): all f for which
    the contrast (1 - f) control - arm + f oracle is not significantly different from 0, paired by
    seed, by the larger of the pooled variance and the contrast's. Arms whose limits are unbounded,
    that is where the gap itself is not significant, are left out. No arm has a share where the
    control or the oracle is not among those of ``shared``.
    """
    arms = shared.arms | shared.outliers
    if not {control, oracle} <= arms:
        return {}
    gaps = -paired_differences(best, (oracle, control), shared.seeds)
    shares = {}
    for arm in sorted(arms - {control, oracle}, key=list(best).index):
        gains = -paired_differences(best, (arm, control), shared.seeds)
        limits = _fieller(gains, gaps, shared, pooled={arm, control, oracle} <= shared.arms)
        if limits:
            shares[arm] = Share(float(gains.mean() / gaps.mean()), *limits)
    return shares


def _fieller(
    gains: np.ndarray, gaps: np.ndarray, shared: Pool, pooled: bool
) -> tuple[float, float] | None:
    """Return the limits of mean(gains) / mean(gaps), each one value a seed; None if unbounded."""
    spreads = [np.cov(gains, gaps)]
    if pooled:  # the control is in both, the arm and the oracle in one each
        spreads.append(shared.variance * np.array([[2.0, 1.0], [1.0, 2.0]]))
    degrees = shared.degrees if pooled else len(gaps) - 1
    factor = float(stats.t.isf(LEVEL / 2, degrees)) ** 2 / len(gaps)
    means = np.array([gains.mean(), gaps.mean()])
    intervals = []
    for spread in spreads:
        interval = _roots(np.outer(means, means) - factor * spread)
        if interval is None:
            return None
        intervals.append(interval)
    return min(low for low, _ in intervals), max(high for _, high in intervals)


def _roots(form: np.ndarray) -> tuple[float, float] | None:
    """Return the interval of f on which (1, -f) form (1, -f)^T <= 0; None if it has no two ends."""
    constant, middle, leading = form[0, 0], form[0, 1], form[1, 1]
    if not leading > 0:
        return None
    half = math.sqrt(max(middle**2 - leading * constant, 0.0))
    return float((middle - half) / leading), float((middle + half) / leading)
