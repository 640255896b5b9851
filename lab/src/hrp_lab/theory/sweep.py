"""Sweeps the final loss over preheat rank and preheating steps, for a chosen spectrum.

The final loss is that of asymmetric LoRA with the preheated directions frozen, run to its end: how
good the directions are (classic LoRA ends at the optimum from almost every start). Preheating is
discrete, by gradient descent, noisy gradient descent or Adam.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from hrp.validation import check_choice, check_integer
from hrp_lab.theory.descent import Descent, descend
from hrp_lab.theory.flow import TrainFactors
from hrp_lab.theory.flow_preheating import spectrum_of
from hrp_lab.theory.flow_starts import RandomKind, random_start
from hrp_lab.theory.predict import random_limit
from hrp_lab.theory.predict_preheated import same_direction_ceiling
from hrp_lab.theory.problem import (
    Direction,
    MatrixFactorization,
    flat_target,
    geometric_target,
    power_law_target,
)
from hrp_lab.theory.sampling import estimate

SpectrumKind = Literal["flat", "geometric", "power-law"]
SIDES: tuple[Direction, ...] = ("A", "B")


@dataclass(frozen=True)
class TargetConfig:
    """Describes a target by its spectrum.

    Args:
        kind: "flat" has ``decay`` equal values; "geometric" s_i = first * decay^(i-1);
            "power-law" s_i = first * i^-decay.
        m: rows.
        n: columns.
        decay: k, ratio or exponent, as the kind says.
        first: the largest singular value.
    """

    kind: SpectrumKind = "geometric"
    m: int = 24
    n: int = 32
    decay: float = 0.8
    first: float = 3.0

    def problem(self) -> MatrixFactorization:
        """Build the target; raises ``ValueError`` for a decay that its kind does not know."""
        check_choice("kind", self.kind, get_args(SpectrumKind))
        check_integer("m", self.m, minimum=1)
        check_integer("n", self.n, minimum=1)
        if self.kind == "geometric":
            return geometric_target(self.m, self.n, self.decay, self.first)
        if self.kind == "power-law":
            return power_law_target(self.m, self.n, self.decay, self.first)
        if not float(self.decay).is_integer():
            raise ValueError(f"`decay` must be the whole number k of 'flat', got {self.decay!r}")
        return flat_target(int(self.decay), self.m, self.n, self.first)


@dataclass(frozen=True)
class SweepConfig:
    """Holds the settings of the sweep.

    Args:
        target: the spectrum.
        rank: r, that of the real adapter.
        preheat_ranks: R, ascending, from r to n.
        preheat_steps: K, ascending, at least 1.
        optimizer: that of preheating; ``preheat_steps`` sets its ``steps`` and ``record``.
        train_factors: the factors that preheating trains; A starts random, B at zero.
        kind: distribution of A's random start.
        draws: number of random starts.
        seed: seed of all draws.
    """

    target: TargetConfig = field(default_factory=TargetConfig)
    rank: int = 3
    preheat_ranks: tuple[int, ...] = (3, 4, 6, 8, 12, 16, 24, 32)
    preheat_steps: tuple[int, ...] = (1, 3, 10, 30, 100, 300)
    optimizer: Descent = field(default_factory=lambda: Descent(step_size=0.02))
    train_factors: TrainFactors = "both"
    kind: RandomKind = "orthogonal"
    draws: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the functions below would only find late in the run."""
        problem = self.target.problem()
        check_integer("draws", self.draws, minimum=2)
        check_integer("seed", self.seed, minimum=0)
        if self.train_factors == "A":
            raise ValueError(
                "`train_factors` must be 'both' or 'B', got 'A'; B starts at zero, and a frozen "
                "zero finds nothing: for B frozen sweep the transposed target"
            )
        for preheat_rank in self.preheat_ranks:
            problem.check_preheat_rank(preheat_rank, self.rank, problem.n)
        for name in ("preheat_ranks", "preheat_steps"):
            values = getattr(self, name)
            if not values or min(values) < 1 or any(b <= a for a, b in pairwise(values)):
                raise ValueError(f"`{name}` must ascend strictly from at least 1, got {values}")


@dataclass(frozen=True)
class Sweep:
    """Holds mean final losses, a row for each R, K and direction, and the known limits."""

    config: SweepConfig
    rows: list[dict[str, Any]]

    def limits(self) -> dict[str, Any]:
        """Return the optimum, the random expectation (T1), and the chord (P8) at every R."""
        problem, rank = self.config.target.problem(), self.config.rank
        return {
            "optimum": problem.optimum(rank),
            "random": random_limit(problem, rank),
            "chord": [
                same_direction_ceiling(problem, preheat_rank, rank)
                for preheat_rank in self.config.preheat_ranks
            ],
            "effective_rank": problem.effective_rank(rank),
        }

    def losses(self, direction: Direction, **where: int) -> list[dict[str, Any]]:
        """Return the rows of a direction with the given ``preheat_rank`` or ``preheat_steps``."""
        wanted = {"direction": direction} | where
        return [row for row in self.rows if wanted.items() <= row.items()]


def sweep(config: SweepConfig) -> Sweep:
    """Preheat at every R, read the directions after every K, and take their limit losses.

    Raises:
        ValueError: of `SweepConfig`. FloatingPointError: the step size is too large.
    """
    problem, rng = config.target.problem(), np.random.default_rng(config.seed)
    steps = config.preheat_steps
    settings = replace(config.optimizer, steps=steps[-1], record=steps)
    rows = []
    for preheat_rank in config.preheat_ranks:
        start = random_start(problem, preheat_rank, rng, config.draws, config.kind)
        run = descend(problem, start, settings, config.train_factors, keep_factors=True, rng=rng)
        for index, step in enumerate(steps):
            update = spectrum_of(*run.factors_at(index))
            for direction in SIDES:
                loss = estimate(update.limit_loss(problem, config.rank, direction))
                where = {"preheat_rank": preheat_rank, "preheat_steps": step}
                rows.append(where | {"direction": direction} | loss._asdict())
    return Sweep(config, rows)
