"""Sweeps the final loss over preheat rank and preheating steps, for a chosen spectrum.

The final loss is that of asymmetric LoRA with the preheated directions frozen, run to its end: how
good the directions are (classic LoRA ends at the optimum from almost every start). Preheating is
discrete, by gradient descent, noisy gradient descent or Adam.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from hrp.validation import check_integer, check_positive
from hrp_lab.theory.flow import RandomKind, Start, TrainFactors, Trajectory, random_start
from hrp_lab.theory.flow_preheating import spectrum_of
from hrp_lab.theory.preheating_statements import same_direction_ceiling
from hrp_lab.theory.problem import (
    SIDES,
    Direction,
    MatrixFactorization,
    check_ascending,
    flat_target,
    geometric_target,
    power_law_target,
)
from hrp_lab.theory.rows import estimate
from hrp_lab.theory.start_statements import random_limit

SpectrumKind = Literal["flat", "geometric", "power-law"]
Method = Literal["gd", "sgd", "adam"]


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
class Descent:
    """Holds an optimizer at a constant step size.

    Args:
        method: "gd", exact gradients; "sgd", exact gradients plus Gaussian noise; "adam", Kingma
            and Ba 2015 with torch's defaults, on exact (or noisy) gradients.
        step_size: the learning rate.
        noise: standard deviation of the noise on every entry of the gradient; "gd" takes none.

    Raises:
        ValueError: a field is out of range.
    """

    method: Method = "gd"
    step_size: float = 0.02
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        if not (np.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"`noise` must be a finite number of at least 0, got {self.noise!r}")
        if self.method == "gd" and self.noise:
            raise ValueError(f"`noise` must be 0 for 'gd', got {self.noise!r}; use 'sgd'")


def descend(
    problem: MatrixFactorization,
    start: Start,
    optimizer: Descent,
    record: tuple[int, ...],
    train_factors: TrainFactors = "both",
    rng: np.random.Generator | None = None,
) -> Trajectory:
    """Run ``optimizer`` from ``start``, recording after the numbers of steps in ``record``.

    ``record`` ascends; 0 is the start. For "gd", step size times steps done is flow time, to first
    order in the step size. Noise is drawn from ``rng``.

    Raises:
        FloatingPointError: the loss became infinite or NaN: the step size is too large.
    """
    factors = {"A": torch.from_numpy(start.A.copy()), "B": torch.from_numpy(start.B.copy())}
    trained = "AB" if train_factors == "both" else train_factors
    rule = torch.optim.Adam if optimizer.method == "adam" else torch.optim.SGD
    updates = rule([factors[name] for name in trained], lr=optimizer.step_size)
    A, B = factors["A"].numpy(), factors["B"].numpy()  # the same memory
    done = 0
    kept: list[tuple[np.ndarray, ...]] = []
    with np.errstate(over="ignore", invalid="ignore"):  # said in our words, below
        for steps in record:
            for _ in range(steps - done):
                gradients = dict(zip("AB", problem.gradients(A, B), strict=True))
                for name in trained:
                    gradient = gradients[name]
                    if rng is not None and optimizer.noise:
                        gradient = gradient + optimizer.noise * rng.standard_normal(gradient.shape)
                    factors[name].grad = torch.from_numpy(gradient)
                updates.step()
            done = steps
            kept.append((problem.loss(A, B), A.copy(), B.copy()))
    losses, kept_A, kept_B = zip(*kept, strict=True)
    if not np.isfinite(losses[-1]).all():
        raise FloatingPointError(
            f"the loss is not finite after {done} steps of {optimizer.method!r} at `step_size` = "
            f"{optimizer.step_size:g}; lower `step_size`"
        )
    return Trajectory(np.stack(losses, -1), np.stack(kept_A, -3), np.stack(kept_B, -3))


@dataclass(frozen=True)
class SweepConfig:
    """Holds the settings of the sweep.

    Args:
        target: the spectrum.
        rank: r, that of the real adapter.
        preheat_ranks: R, ascending, from r to n.
        preheat_steps: K, ascending, at least 1.
        optimizer: that of preheating.
        train_factors: the factors that preheating trains; A starts random, B at zero, so that a
            frozen B would find nothing.
        kind: distribution of A's random start.
        draws: number of random starts.
        seed: seed of all draws.
    """

    target: TargetConfig = field(default_factory=TargetConfig)
    rank: int = 3
    preheat_ranks: tuple[int, ...] = (3, 4, 6, 8, 12, 16, 24, 32)
    preheat_steps: tuple[int, ...] = (1, 3, 10, 30, 100, 300)
    optimizer: Descent = field(default_factory=Descent)
    train_factors: Literal["both", "B"] = "both"
    kind: RandomKind = "orthogonal"
    draws: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what the functions below would only find late in the run."""
        problem = self.target.problem()
        check_integer("draws", self.draws, minimum=2)
        for preheat_rank in self.preheat_ranks:
            problem.check_ranks(self.rank, preheat_rank, problem.n)
        check_ascending("preheat_ranks", "integers from 1", self.preheat_ranks, 0.0)
        check_ascending("preheat_steps", "integers from 1", self.preheat_steps, 0.0)


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

    def table(self) -> str:
        """Return mean final losses by R and K, a block for each direction."""
        limits = self.limits()
        lines = [
            f"optimum {limits['optimum']:.4f}, random {limits['random']:.4f}, effective rank k_r "
            f"{limits['effective_rank']:.2f}; mean final loss by R (rows) and K (columns)"
        ]
        for direction in SIDES:
            head = "".join(f" {step:>9}" for step in self.config.preheat_steps)
            lines += ["", f"direction {direction}, R \\ K{head}"]
            for rank in self.config.preheat_ranks:
                means = [row["mean"] for row in self.losses(direction, preheat_rank=rank)]
                lines.append(f"{rank:>18}" + "".join(f" {mean:>9.4f}" for mean in means))
        return "\n".join(lines)


def sweep(config: SweepConfig) -> Sweep:
    """Preheat at every R, read the directions after every K, and take their limit losses.

    Raises ``FloatingPointError`` where the step size is too large.
    """
    problem, rng = config.target.problem(), np.random.default_rng(config.seed)
    steps, rows = config.preheat_steps, []
    for preheat_rank in config.preheat_ranks:
        start = random_start(problem, preheat_rank, rng, config.draws, config.kind)
        run = descend(problem, start, config.optimizer, steps, config.train_factors, rng)
        for index, step in enumerate(steps):
            update = spectrum_of(*run.factors_at(index))
            for direction in SIDES:
                loss = estimate(update.limit_loss(problem, config.rank, direction))
                where = {"preheat_rank": preheat_rank, "preheat_steps": step}
                rows.append(where | {"direction": direction} | loss._asdict())
    return Sweep(config, rows)
