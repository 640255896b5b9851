"""Arrange records of learning-rate sweeps by arm, rate and seed, and pick each arm's best rate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hrp_lab.bench.record import Record, RecordError

Scores = Mapping[str, Mapping[float, Mapping[int, float]]]  # arm -> learning rate -> seed -> value
FORGETTING = "forgetting"
"""The metric of `hrp_lab.bench.tasks.forgetting`; less is better."""
_LONE_RATE_RATIO = 3.0


def minimised(metric: str) -> bool:
    """Return whether less is better, as it is for losses and for lm-eval's perplexities and bits.

    The metric's name tells; lm-eval's names may end in the name of a filter.

    >>> minimised("eval_loss"), minimised("lm_eval_pile_bits_per_byte"), minimised("exact_match")
    (True, True, False)
    """
    return (
        metric == FORGETTING
        or metric.endswith("loss")
        or any(word in metric for word in ("perplexity", "bits_per_byte"))
    )


def scores(
    records: Sequence[Record], metric: str, label: Callable[[Record], str] = lambda r: r.arm
) -> dict[str, dict[float, dict[int, float]]]:
    """Arrange the records that are "ok" and have ``metric`` by label, learning rate and seed.

    Raises `RecordError` where two records have all three in common: they need other labels.
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
    """Sort ``grid`` and add a value beyond its edge if ``best`` sits there.

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
    """Holds an arm's sweep, and the best of its learning rates.

    Args:
        by_rate: metric by rate and seed.
        failed: rates at which a run was tried and gave nothing: they bound the sweep as others do,
            and are not waited for.
        minimise: whether less is better.
    """

    arm: str
    learning_rate: float
    by_rate: Mapping[float, Mapping[int, float]]
    failed: frozenset[float] = frozenset()
    minimise: bool = True

    @property
    def values(self) -> Mapping[int, float]:
        """Return the metric by seed at the best rate."""
        return self.by_rate[self.learning_rate]

    @property
    def complete(self) -> tuple[float, ...]:
        """Return the rates with the most seeds of any rate, ascending; the best is among them."""
        most = max(map(len, self.by_rate.values()))
        return tuple(sorted(rate for rate, seeds in self.by_rate.items() if len(seeds) == most))

    @property
    def grid(self) -> tuple[float, ...]:
        """Return the learning rates tried, ascending."""
        return tuple(sorted(self.failed | set(self.by_rate)))

    @property
    def mean(self) -> float:
        """Return the mean over seeds."""
        return float(np.mean(list(self.values.values())))

    @property
    def spread(self) -> float:
        """Return the standard deviation over seeds; NaN for a single seed."""
        values = list(self.values.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    @property
    def on_edge(self) -> bool:
        """Return whether the best rate is on the grid's edge, so that the sweep needs widening."""
        return self.learning_rate in (self.grid[0], self.grid[-1])

    @property
    def overtaken_by(self) -> float | None:
        """Return a rate that lacks seeds and beats every complete rate on those it has.

        Means are compared over common seeds only: seeds differ more than rates do. Until such a
        rate has all seeds the best rate is not known. Returns None where it is settled.
        """
        behind = {
            rate: max(self._behind(rate, whole) for whole in self.complete)
            for rate in set(self.by_rate) - set(self.complete) - self.failed
        }
        ahead = [rate for rate, worst in behind.items() if worst < 0]
        return min(ahead, key=lambda rate: (behind[rate], rate), default=None)

    def _behind(self, rate: float, other: float) -> float:
        """Return how much worse ``rate`` is than ``other`` on common seeds; inf without any."""
        seeds = set(self.by_rate[rate]) & set(self.by_rate[other])
        if not seeds:
            return math.inf
        excess = [self.by_rate[rate][seed] - self.by_rate[other][seed] for seed in seeds]
        return float(np.mean(excess)) * (1 if self.minimise else -1)


def settled(best: Mapping[str, Best]) -> dict[str, Best]:
    """Keep those of ``best`` whose best rate is known, see `Best.overtaken_by`."""
    return {arm: sweep for arm, sweep in best.items() if sweep.overtaken_by is None}


def select(
    table: Scores, minimise: bool, failed: Mapping[str, frozenset[float]] | None = None
) -> dict[str, Best]:
    """Put each arm at the learning rate with the best mean over seeds, best arm first.

    Only rates with the most seeds that the arm has at any rate are eligible, so a rate at which a
    seed diverged is not chosen for the luck of the others. Ties go to the lower rate.
    ``failed`` holds, by arm, rates at which runs failed.
    """
    sign = 1 if minimise else -1
    best = []
    for arm, by_rate in table.items():
        lost = (failed or {}).get(arm, frozenset())
        first = Best(arm, next(iter(by_rate)), by_rate, lost, minimise)
        ranked = [dataclasses.replace(first, learning_rate=rate) for rate in first.complete]
        best.append(min(ranked, key=lambda sweep: sign * sweep.mean))
    return {sweep.arm: sweep for sweep in sorted(best, key=lambda sweep: sign * sweep.mean)}
