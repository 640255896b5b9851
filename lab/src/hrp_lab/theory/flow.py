"""Integrates the gradient flow A' = -dL/dA, B' = -dL/dB by scipy's error-controlled solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from hrp.validation import check_choice
from hrp_lab.theory.flow_starts import Start
from hrp_lab.theory.matrix_arguments import checked_times
from hrp_lab.theory.problem import MatrixFactorization

TrainFactors = Literal["both", "A", "B"]

_TOLERANCES = (1e-13, 1e-2)
# scipy itself knows no limit; a target of large singular values would keep it busy for ever.
_MOST_EVALUATIONS = 50_000


class SolverError(ArithmeticError):
    """The solver could not reach the asked tolerance at the asked times."""


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Holds the losses along a run, of every draw.

    Args:
        times: (times,) ascending; flow time, which is step size times steps for gradient descent.
        losses: (*batch, times).
        A: (*batch, times, n, rank) or None, as asked.
        B: (*batch, times, m, rank) or None, as asked.
    """

    times: Float[np.ndarray, " times"]
    losses: Float[np.ndarray, "*batch times"]
    A: Float[np.ndarray, "*batch times n rank"] | None = None
    B: Float[np.ndarray, "*batch times m rank"] | None = None

    def factors(
        self,
    ) -> tuple[Float[np.ndarray, "*batch times n rank"], Float[np.ndarray, "*batch times m rank"]]:
        """Return A and B at all times; raises ``ValueError`` where they were not kept."""
        if self.A is None or self.B is None:
            raise ValueError("the factors were not recorded; run with `keep_factors=True`")
        return self.A, self.B

    def factors_at(
        self, index: int
    ) -> tuple[Float[np.ndarray, "*batch n rank"], Float[np.ndarray, "*batch m rank"]]:
        """Return A and B at ``times[index]``; raises ``ValueError`` where they were not kept."""
        A, B = self.factors()
        return A[..., index, :, :], B[..., index, :, :]

    def time_to(self, loss: float) -> Float[np.ndarray, "*batch"]:
        """Return the first time at which the loss is at most ``loss``; infinity where it never is.

        Linear interpolation between the recorded times.
        """
        reached = self.losses <= loss
        after = reached.argmax(-1)
        before = np.maximum(after - 1, 0)
        high, low = _pick(self.losses, before), _pick(self.losses, after)
        drop = np.where(high > low, high - low, 1.0)
        share = np.where(after == before, 0.0, (high - loss) / drop)
        crossing = self.times[before] + share * (self.times[after] - self.times[before])
        return np.asarray(np.where(reached.any(-1), crossing, np.inf))


def _pick(
    losses: Float[np.ndarray, "*batch times"], index: np.ndarray
) -> Float[np.ndarray, "*batch"]:
    return np.asarray(np.take_along_axis(losses, index[..., None], -1)[..., 0])


def gradient_flow(
    problem: MatrixFactorization,
    start: Start,
    times: Float[np.ndarray, " times"],
    train_factors: TrainFactors = "both",
    tolerance: float = 1e-9,
    keep_factors: bool = False,
) -> Trajectory:
    """Integrate the flow from ``start`` (time 0) and record it at ``times``.

    Dormand and Prince's method of order 8 with adaptive steps (scipy's DOP853). All draws of a
    batch are one system; ``tolerance``, relative and absolute, holds for each draw by itself.

    Args:
        problem: the target.
        start: the factors at time 0; leading axes are draws.
        times: ascending, >= 0.
        train_factors: "both" is classic LoRA; "A" or "B" is asymmetric LoRA with the other frozen.
        tolerance: bound of the local error, between 1e-13 and 1e-2.
        keep_factors: record A and B too.

    Raises:
        ValueError: times negative, not finite or not ascending; ``tolerance`` out of range.
        SolverError: the tolerance was not reached.
    """
    when = checked_times(times)
    check_choice("train_factors", train_factors, get_args(TrainFactors))
    if not _TOLERANCES[0] <= tolerance <= _TOLERANCES[1]:
        low, high = _TOLERANCES
        raise ValueError(f"`tolerance` must be between {low:g} and {high:g}, got {tolerance!r}")
    system = _System(problem, start, train_factors)
    states = _solve(system, when, tolerance)
    # One time at a time: the residuals of all would not fit into the cache, nor always in memory.
    losses = np.stack([problem.loss(*system.factors(state)) for state in states], axis=-1)
    if not keep_factors:
        return Trajectory(when, losses)
    factors = (np.moveaxis(factor, 0, -3) for factor in system.factors(states))
    return Trajectory(when, losses, *factors)


class _System:
    """Gives scipy the flow as one flat vector, which holds the trained factors only."""

    def __init__(self, problem: MatrixFactorization, start: Start, train_factors: str) -> None:
        self.problem, self.start = problem, start
        self.trains_A, self.trains_B = train_factors != "B", train_factors != "A"
        self.evaluations = 0
        trained = [start.A] * self.trains_A + [start.B] * self.trains_B
        self.initial = np.concatenate([factor.ravel() for factor in trained])
        self.draws = int(np.prod(start.A.shape[:-2]))

    def factors(self, state: Float[np.ndarray, "*times size"]) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors of a state, or of many states with a leading axis of times."""
        times = state.shape[:-1]
        split = self.start.A.size if self.trains_A else 0
        A = (
            state[..., :split]
            if self.trains_A
            else np.broadcast_to(self.start.A.ravel(), (*times, self.start.A.size))
        )
        B = (
            state[..., split:]
            if self.trains_B
            else np.broadcast_to(self.start.B.ravel(), (*times, self.start.B.size))
        )
        return A.reshape(*times, *self.start.A.shape), B.reshape(*times, *self.start.B.shape)

    def slope(self, _time: float, state: Float[np.ndarray, " size"]) -> np.ndarray:
        self.evaluations += 1
        if self.evaluations > _MOST_EVALUATIONS:
            raise SolverError(
                f"the flow needs more than {_MOST_EVALUATIONS} evaluations of the gradient to "
                "reach its `tolerance`; loosen `tolerance`, shorten `times`, or scale `M` down"
            )
        grad_A, grad_B = self.problem.gradients(*self.factors(state))
        trained = [grad_A] * self.trains_A + [grad_B] * self.trains_B
        return -np.concatenate([gradient.ravel() for gradient in trained])


def _solve(
    system: _System, times: Float[np.ndarray, " times"], tolerance: float
) -> Float[np.ndarray, "times size"]:
    if times[-1] == 0:
        return system.initial[None]
    # The solver bounds the root mean square over the whole vector; one draw's own root mean square
    # is at most sqrt(draws) times that. Below 100 eps scipy would warn and take its own tolerance.
    each = max(tolerance / np.sqrt(system.draws), 100 * np.finfo(float).eps)
    with np.errstate(over="ignore", invalid="ignore"):
        solution = solve_ivp(
            system.slope,
            (0.0, times[-1]),
            system.initial,
            method="DOP853",
            t_eval=times,
            rtol=each,
            atol=each,
        )
    if solution.status != 0 or not np.isfinite(solution.y).all():
        raise SolverError(
            f"the solver stopped before time {times[-1]:g} without reaching `tolerance` = "
            f"{tolerance:g} ({solution.message}); loosen `tolerance`, or scale `M` down"
        )
    return np.ascontiguousarray(solution.y.T)
