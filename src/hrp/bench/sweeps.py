"""Learning-rate sweeps: records arranged by arm, rate and seed, and each arm's best rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hrp.bench.record import Record, RecordError

Scores = Mapping[str, Mapping[float, Mapping[int, float]]]  # arm -> learning rate -> seed -> value
_LONE_RATE_RATIO = 3.0


def minimised(metric: str) -> bool:
    """Whether less is better: for losses and perplexities, by their names.

    >>> minimised("eval_loss"), minimised("exact_match")
    (True, False)
    """
    return metric.endswith(("loss", "perplexity"))


def scores(
    records: Sequence[Record], metric: str, label: Callable[[Record], str] = lambda r: r.arm
) -> dict[str, dict[float, dict[int, float]]]:
    """Arrange the records that are "ok" and have ``metric`` by label, learning rate and seed.

    Raises `RecordError` where two records fall on one place: their arms need labels of their own.
    """
    table: dict[str, dict[float, dict[int, float]]] = {}
    for record in records:
        if record.status != "ok" or metric not in record.metrics:
            continue
        run = record.run
        by_seed = table.setdefault(label(record), {}).setdefault(run.learning_rate, {})
        if run.seed in by_seed:
            raise RecordError(
                f"two records of arm {label(record)!r}, learning rate {run.learning_rate:g} and "
                f"seed {run.seed}, one of them {record.run_id}; compare one configuration at a "
                "time, or give a `label` that tells them apart"
            )
        by_seed[run.seed] = record.metrics[metric]
    return table


def widened(grid: Sequence[float], best: float) -> tuple[float, ...]:
    """``grid``, with one more value beyond the edge if ``best`` sits on it; sorted.

    The new value keeps the ratio of the last two, rounded to three digits. A grid of one value
    grows on both sides. Raises ``ValueError`` where ``best`` is not in the grid.

    >>> widened([1e-3, 2e-3, 4e-3], best=4e-3), widened([1e-3, 2e-3, 4e-3], best=2e-3)
    ((0.001, 0.002, 0.004, 0.008), (0.001, 0.002, 0.004))
    """
    rates = sorted(set(grid))
    if best not in rates:
        raise ValueError(f"`best` must be one of the grid's values {rates}, got {best!r}")
    lower = rates[1] / rates[0] if len(rates) > 1 else _LONE_RATE_RATIO
    upper = rates[-1] / rates[-2] if len(rates) > 1 else _LONE_RATE_RATIO
    below = [rates[0] / lower] if best == rates[0] else []
    above = [rates[-1] * upper] if best == rates[-1] else []
    return tuple(float(f"{rate:.3g}") if rate not in rates else rate
                 for rate in below + rates + above)  # fmt: skip


@dataclass(frozen=True)
class Best:
    """An arm at its best learning rate.

    Args:
        learning_rate: the best of ``sweep``'s.
        values: metric by seed at that rate.
        sweep: mean over seeds by rate.
        failed: rates that were tried and gave nothing: they bound the sweep as others do.
    """

    arm: str
    learning_rate: float
    values: Mapping[int, float]
    sweep: Mapping[float, float]
    failed: frozenset[float] = frozenset()

    @property
    def grid(self) -> tuple[float, ...]:
        """Learning rates tried, ascending."""
        return tuple(sorted(self.failed | set(self.sweep)))

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; NaN for a single seed."""
        values = list(self.values.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def on_edge(self) -> bool:
        """Whether the best rate is the grid's smallest or largest: the sweep needs widening."""
        return self.learning_rate in (self.grid[0], self.grid[-1])

    def is_overtaken(self, minimise: bool) -> bool:
        """Whether a rate that had too few seeds to be chosen looks better than the chosen one."""
        means = self.sweep.values()
        return min(means) < self.mean if minimise else max(means) > self.mean


def select(
    table: Scores, minimise: bool, failed: Mapping[str, frozenset[float]] | None = None
) -> dict[str, Best]:
    """Each arm at the learning rate with the best mean over seeds, best arm first.

    Only rates with the most seeds that the arm has at any rate are eligible, so a rate at which a
    seed diverged is not chosen for the luck of the others. Ties go to the lower rate.
    ``failed`` holds, by arm, rates at which runs failed.
    """
    sign = 1 if minimise else -1
    best = []
    for arm, by_rate in table.items():
        most = max(map(len, by_rate.values()))
        sweep = {rate: float(np.mean(list(values.values()))) for rate, values in by_rate.items()}
        eligible = sorted(rate for rate, values in by_rate.items() if len(values) == most)
        rate = min(eligible, key=lambda rate: sign * sweep[rate])
        lost = (failed or {}).get(arm, frozenset())
        best.append(Best(arm, rate, dict(by_rate[rate]), sweep, lost))
    return {one.arm: one for one in sorted(best, key=lambda one: sign * one.mean)}
