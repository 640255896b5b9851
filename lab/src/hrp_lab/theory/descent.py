"""Runs discrete optimisers on the same problem, for what gradient flow does not cover."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from hrp.validation import check_choice, check_integer, check_positive
from hrp_lab.theory.flow import TrainFactors, Trajectory
from hrp_lab.theory.flow_starts import Start
from hrp_lab.theory.problem import MatrixFactorization

Method = Literal["gd", "sgd", "adam"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class Descent:
    """Holds an optimizer at a constant step size.

    Args:
        method: "gd", exact gradients; "sgd", exact gradients plus Gaussian noise; "adam", Kingma
            and Ba 2015 with betas (0.9, 0.999), epsilon 1e-8, on exact (or noisy) gradients.
        step_size: the learning rate.
        steps: number of updates.
        noise: standard deviation of the noise on every entry of the gradient; "gd" takes none.
        record: steps done at which to record, ascending, 0 for the start; empty means every one.

    Raises:
        ValueError: a field is out of range.
    """

    method: Method = "gd"
    step_size: float = 0.02
    steps: int = 500
    noise: float = 0.0
    record: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        check_positive("step_size", self.step_size)
        check_integer("steps", self.steps, minimum=1)
        if not (np.isfinite(self.noise) and self.noise >= 0):
            raise ValueError(f"`noise` must be a finite number of at least 0, got {self.noise!r}")
        if self.method == "gd" and self.noise:
            raise ValueError(f"`noise` must be 0 for 'gd', got {self.noise!r}; use 'sgd'")
        if self.method == "sgd" and not self.noise:
            raise ValueError("`noise` must be above 0 for 'sgd', got 0; without noise it is 'gd'")
        if self.record and (
            self.record[0] < 0
            or self.record[-1] > self.steps
            or any(later <= earlier for earlier, later in pairwise(self.record))
        ):
            raise ValueError(
                f"`record` must ascend strictly within 0 and `steps` = {self.steps}, got "
                f"{self.record}"
            )

    @property
    def recorded(self) -> tuple[int, ...]:
        """Return the numbers of steps after which the run is recorded."""
        return self.record or tuple(range(self.steps + 1))


def descend(
    problem: MatrixFactorization,
    start: Start,
    settings: Descent,
    train_factors: TrainFactors = "both",
    keep_factors: bool = False,
    rng: np.random.Generator | None = None,
) -> Trajectory:
    """Run ``settings`` from ``start``, recording as they say; the loss is checked at every step.

    The trajectory's times are step size times steps done: for "gd" they are flow times, to first
    order in the step size.

    Raises:
        ValueError: noise is asked for, and no ``rng`` given.
        FloatingPointError: the loss became infinite or NaN: the step size is too large.
    """
    check_choice("train_factors", train_factors, get_args(TrainFactors))
    if settings.noise and rng is None:
        raise ValueError("`rng` must be given for noise, got None; pass numpy.random.default_rng()")
    factors = {"A": start.A, "B": start.B}
    trained = ["A", "B"] if train_factors == "both" else [train_factors]
    updates = {name: _Update(settings, factors[name]) for name in trained}
    kept: list[dict[str, np.ndarray]] = []
    losses = []
    recorded = set(settings.recorded)
    with np.errstate(over="ignore", invalid="ignore"):  # `_finite_loss` says it in our words
        for step in range(settings.steps + 1):
            loss = _finite_loss(problem, factors, step, settings)
            if step in recorded:
                losses.append(loss)
                kept.extend([factors] * keep_factors)
            if step < settings.steps:
                gradients = problem.gradients(factors["A"], factors["B"])
                gradient = dict(zip("AB", gradients, strict=True))
                steps = {name: update(gradient[name], rng) for name, update in updates.items()}
                factors = factors | {name: factors[name] - step for name, step in steps.items()}
    times = settings.step_size * np.array(settings.recorded, dtype=np.float64)
    if not keep_factors:
        return Trajectory(times, np.stack(losses, -1))
    A, B = (
        np.stack([recorded_factors[name] for recorded_factors in kept], -3) for name in ("A", "B")
    )
    return Trajectory(times, np.stack(losses, -1), A, B)


def _finite_loss(
    problem: MatrixFactorization, factors: dict[str, np.ndarray], step: int, settings: Descent
) -> Float[np.ndarray, "*batch"]:
    loss = problem.loss(factors["A"], factors["B"])
    if not np.isfinite(loss).all():
        raise FloatingPointError(
            f"the loss is not finite after {step} steps of {settings.method!r} at `step_size` = "
            f"{settings.step_size:g}; lower `step_size`"
        )
    return loss


class _Update:
    """Computes what a step takes off a factor; holds Adam's moments."""

    def __init__(self, settings: Descent, factor: np.ndarray) -> None:
        self.settings = settings
        self.first, self.second = np.zeros_like(factor), np.zeros_like(factor)
        self.count = 0

    def __call__(self, gradient: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        if rng is not None and self.settings.noise:
            gradient = gradient + self.settings.noise * rng.standard_normal(gradient.shape)
        if self.settings.method != "adam":
            return self.settings.step_size * gradient
        self.count += 1
        beta1, beta2 = _BETAS
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        scaled = np.sqrt(self.second / (1 - beta2**self.count)) + _EPSILON
        return self.settings.step_size * self.first / (1 - beta1**self.count) / scaled
