"""Turn scores into verdicts: best learning rates, paired differences, corrected significance.

This is the procedure, with its assumptions and its reasons:

1. Each arm stands at the learning rate with the best mean over seeds (`sweeps.select`).
   An arm whose best rate is not settled takes part in nothing: its scores are those of a wrong
   rate. Where the control is such an arm there are no verdicts.
2. Differences to the control are paired by seed and tested with t, with a variance *pooled* over
   the arms (seed effects removed) and never smaller than the pair's own. With three seeds a pair's
   own variance has 2 degrees of freedom, and after Holm's correction over 20 arms nothing short of
   28 standard errors would be significant; pooled, 3.2 suffice. An arm whose spread stands out
   (Cochran's test, 1 %) is left out of the pool and tested by the variance of its pair.
3. p values are corrected by Holm (1979) over all comparisons; a verdict needs p <= 0.05.

Choosing the learning rate by the very scores that are compared does no harm to the level when arms
are alike: for normal scores the choice depends on means only, which are independent of the
residuals, and the smallest of several means is a 1-Lipschitz function of them, so that by Gaussian
isoperimetry the difference of two such minima has lighter tails than one plain difference. What
simulated A/A benchmarks gave, those of arms of unequal noise too, stands in docs/benchmark.md.

Choosing the rate on the other seeds instead, which looks safer, is not: the folds' choices share
seeds, so their scores are positively correlated, and up to 30 % of A/A benchmarks had false
verdicts. A percentile bootstrap over three seeds covers far less than it says, too: it is reported,
as is the custom, and decides nothing.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from hrp_lab.bench.sweeps import Best, settled

Pair = tuple[str, str]  # an arm and what it is compared with
Verdict = Literal["better", "worse", "no significant difference", "rate not settled", "incomplete"]
UNJUDGED: tuple[Verdict, ...] = ("rate not settled", "incomplete")
CONTROL = "lora"
LEVEL = 0.05
_OUTLIER_LEVEL = 0.01
_RESAMPLES = 9999


@dataclass(frozen=True)
class Pool:
    """Holds the variance of a run, seed effects removed, pooled over arms alike in spread.

    Args:
        values: of every arm that has all seeds, one value a seed.
        alike: those in the pool; the others are left out by Cochran's test.
        variance: of a single run; ``degrees``: its degrees of freedom.
    """

    values: Mapping[str, np.ndarray]
    alike: frozenset[str]
    variance: float
    degrees: int

    def standard_error(
        self, weighted: np.ndarray, arms: set[str], weight: float
    ) -> tuple[float, int]:
        """Return the standard error of the mean of ``weighted``, and its degrees of freedom.

        ``weighted`` is a contrast of the ``arms``, one value a seed; ``weight`` is the sum of its
        squared coefficients.
        """
        unpooled = float(np.var(weighted, ddof=1))
        if not arms <= self.alike:
            return math.sqrt(unpooled / len(weighted)), len(weighted) - 1
        return math.sqrt(max(weight * self.variance, unpooled) / len(weighted)), self.degrees


def pool(best: Mapping[str, Best], seeds: Sequence[int]) -> Pool:
    """Pool the residuals of a two-way layout, arms by seeds, over the arms that have all seeds."""
    values = {
        arm: np.array([sweep.values[seed] for seed in seeds])
        for arm, sweep in best.items()
        if set(seeds) <= set(sweep.values)
    }
    alike = list(values)
    while True:
        rows = np.array([values[arm] for arm in alike])
        residuals = rows - rows.mean(0) - rows.mean(1, keepdims=True) + rows.mean()
        squares = np.square(residuals).sum(1)
        worst = int(squares.argmax())
        if not _stands_out(squares, worst, len(seeds) - 1):
            break
        del alike[worst]
    degrees = (len(alike) - 1) * (len(seeds) - 1)
    return Pool(values, frozenset(alike), float(squares.sum() / degrees), degrees)


def _stands_out(squares: np.ndarray, index: int, degrees: int) -> bool:
    """Test the largest variance as Cochran (1941) does, Bonferroni over arms."""
    count, others = len(squares), float(squares.sum() - squares[index])
    if count <= 2 or others <= 0:
        return False
    ratio = squares[index] / (others / (count - 1))
    return bool(count * stats.f.sf(ratio, degrees, (count - 1) * degrees) < _OUTLIER_LEVEL)


@dataclass(frozen=True)
class Comparison:
    """Compares an arm with another, both at their best learning rates.

    Args:
        verdict: "better" or "worse" only where ``holm_p <= LEVEL``; of `UNJUDGED` where there is no
            test, and then all numbers are NaN.
        difference: mean over seeds of ``arm`` minus ``control``, in the metric's units.
        interval: 95 % t interval of the difference, for this comparison alone.
        bootstrap: 95 % percentile bootstrap over seeds, paired; too narrow with few seeds.
        p_value: two-sided; ``holm_p``: corrected over all comparisons made together.
        pooled: whether the pooled variance was used.
    """

    arm: str
    control: str
    verdict: Verdict
    difference: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    bootstrap: tuple[float, float] = (math.nan, math.nan)
    p_value: float = math.nan
    holm_p: float = math.nan
    pooled: bool = False

    @property
    def judged(self) -> bool:
        """Return whether there was a test."""
        return self.verdict not in UNJUDGED


def compare(best: Mapping[str, Best], control: str = CONTROL) -> list[Comparison]:
    """Compare every arm with ``control``, in the order of ``best``; see the module's text."""
    return compare_pairs(best, [(arm, control) for arm in best if arm != control])


def compare_pairs(best: Mapping[str, Best], pairs: Sequence[Pair]) -> list[Comparison]:
    """Compare (arm, control) pairs, with Holm's correction over all of them.

    To say that the best of several new arms beats every other, give all pairs of a new arm and
    another: a pair picked after looking is not a fair test. Arms without every seed that the
    controls have, and all arms where these are fewer than two, are "incomplete"; pairs of which
    either arm's best rate is not settled are "rate not settled". Neither take part in the pooled
    variance or in Holm's correction.

    Raises ``ValueError`` where a control has no scores.
    """
    lacking = sorted({control for _, control in pairs} - set(best))
    if lacking:
        raise ValueError(f"`control` must be an arm with results, {sorted(best)}; got {lacking}")
    known = settled(best)
    shared = shared_pool(best, {control for _, control in pairs})
    tests = {}
    if shared is not None:
        tests = {pair: _test(pair, shared) for pair in pairs if set(pair) <= set(shared.values)}
    corrected = holm([test.p_value for test in tests.values()])
    for (pair, test), holm_p in zip(tests.items(), corrected, strict=True):
        verdict: Verdict = "no significant difference"
        if holm_p <= LEVEL:
            verdict = "better" if (test.difference < 0) == best[pair[0]].minimise else "worse"
        tests[pair] = dataclasses.replace(test, holm_p=holm_p, verdict=verdict)
    return [
        tests.get(pair)
        or Comparison(*pair, "incomplete" if set(pair) <= set(known) else "rate not settled")
        for pair in pairs
    ]


def shared_pool(best: Mapping[str, Best], controls: Collection[str] = (CONTROL,)) -> Pool | None:
    """Pool all settled arms, over the seeds that the settled controls have.

    Returns None where that leaves fewer than two seeds or two arms: nothing can be tested.
    """
    known = settled(best)
    seeds = [set(known[control].values) for control in controls if control in known]
    paired = sorted(set.intersection(*seeds)) if seeds else []
    complete = [arm for arm, sweep in known.items() if set(paired) <= set(sweep.values)]
    return pool(known, paired) if len(paired) > 1 < len(complete) else None


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for all being looked at (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [0.0] * len(p_values), 0.0
    for smaller, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - smaller) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean, by a fixed seed."""
    draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(1), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def _test(pair: Pair, shared: Pool) -> Comparison:
    """Test a pair by t, without the correction for others."""
    differences = shared.values[pair[0]] - shared.values[pair[1]]
    error, degrees = shared.standard_error(differences, set(pair), weight=2.0)
    mean, half = float(differences.mean()), float(stats.t.isf(LEVEL / 2, degrees) * error)
    # Without any spread there is nothing to test against: equal discrete scores prove nothing.
    p_value = float(2 * stats.t.sf(abs(mean) / error, degrees)) if error > 0 else 1.0
    return Comparison(
        *pair,
        verdict="no significant difference",
        difference=mean,
        interval=(mean - half, mean + half),
        bootstrap=bootstrap_interval(differences),
        p_value=p_value,
        pooled=set(pair) <= shared.alike,
    )


@dataclass(frozen=True)
class Share:
    """Holds the share of a gap that an arm closes; ``low`` and ``high`` are its 95 % limits."""

    share: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.share:.0%} [{self.low:.0%}, {self.high:.0%}]"


def gap_closed(shared: Pool, oracle: str, control: str = CONTROL) -> dict[str, Share]:
    """Return, by arm, the share of the way from ``control`` to ``oracle`` that it goes.

    With f = (control - arm) / (control - oracle), the limits are Fieller's (1954): all f for which
    the contrast (1 - f) control - arm + f oracle is not significantly different from 0, paired by
    seed, by the larger of the pooled variance and the contrast's. Arms whose limits are unbounded,
    that is where the gap itself is not significant, are left out. No arm has a share where the
    control or the oracle is not among those of ``shared``.
    """
    values = shared.values
    if not {control, oracle} <= set(values):
        return {}
    gaps = values[control] - values[oracle]
    shares = {}
    for arm in [arm for arm in values if arm not in (control, oracle)]:
        gains = values[control] - values[arm]
        limits = _fieller(gains, gaps, shared, pooled={arm, control, oracle} <= shared.alike)
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
