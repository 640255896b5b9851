"""Integrates the gradient flow A' = -dL/dA, B' = -dL/dB from random, wise or preheated starts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from hrp_lab.theory.problem import Direction, MatrixFactorization, orthonormal_columns

TrainFactors = Literal["both", "A", "B"]
RandomKind = Literal["gaussian", "orthogonal"]

# scipy itself knows no limit; a target of large singular values would keep it busy for ever.
_MOST_EVALUATIONS = 50_000


class SolverError(ArithmeticError):
    """The solver could not reach the asked tolerance at the asked times."""


@dataclass(frozen=True, eq=False)
class Start:
    """Holds both factors at time 0; one of them is zero, so that the product is zero.

    Args:
        A: (*batch, n, rank).
        B: (*batch, m, rank).
        direction: the factor that carries the directions; the other one is zero.
    """

    A: Float[np.ndarray, "*batch n rank"]
    B: Float[np.ndarray, "*batch m rank"]
    direction: Direction

    @property
    def carrier(self) -> Float[np.ndarray, "*batch dimension rank"]:
        """Return the factor that is not zero."""
        return self.A if self.direction == "A" else self.B


def start_at(
    problem: MatrixFactorization,
    carrier: Float[np.ndarray, "*batch dimension rank"],
    direction: Direction = "A",
) -> Start:
    """Put ``carrier`` (*batch, n or m, rank) into A (direction "A") or B ("B"), 0 elsewhere."""
    other = problem.seen_from(direction).m
    zero = np.zeros((*carrier.shape[:-2], other, carrier.shape[-1]))
    return Start(carrier, zero, direction) if direction == "A" else Start(zero, carrier, direction)


def random_start(
    problem: MatrixFactorization,
    rank: int,
    rng: np.random.Generator,
    draws: int,
    kind: RandomKind = "orthogonal",
    direction: Direction = "A",
) -> Start:
    """Draw random starts: Haar orthonormal columns, or Gaussian columns of that mean length.

    Gaussian entries have variance 1 / dimension, so a column's expected squared norm is 1, and
    both kinds start with the same E ||A||_F^2 = rank.
    """
    dimension = problem.seen_from(direction).n
    if kind == "gaussian":
        carrier = rng.standard_normal((draws, dimension, rank)) / np.sqrt(dimension)
    else:
        carrier = orthonormal_columns(rng, dimension, rank, (draws,))
    return start_at(problem, carrier, direction)


def wise_start(
    problem: MatrixFactorization, rank: int, direction: Direction = "A", scale: float = 1.0
) -> Start:
    """Start at the target's own leading singular vectors, times ``scale``, in no batch (P2, P3)."""
    return start_at(problem, scale * problem.seen_from(direction).svd[2][:rank].T, direction)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Holds the losses and factors along a run, of every draw.

    Args:
        losses: (*batch, times).
        A: (*batch, times, n, rank).
        B: (*batch, times, m, rank).
    """

    losses: Float[np.ndarray, "*batch times"]
    A: Float[np.ndarray, "*batch times n rank"]
    B: Float[np.ndarray, "*batch times m rank"]

    def factors_at(
        self, index: int
    ) -> tuple[Float[np.ndarray, "*batch n rank"], Float[np.ndarray, "*batch m rank"]]:
        """Return A and B at the recorded time ``index``."""
        return self.A[..., index, :, :], self.B[..., index, :, :]


def gradient_flow(
    problem: MatrixFactorization,
    start: Start,
    times: Float[np.ndarray, " times"],
    train_factors: TrainFactors = "both",
    tolerance: float = 1e-9,
) -> Trajectory:
    """Integrate the flow from ``start`` (time 0) and record it at ``times``.

    Dormand and Prince's method of order 8 with adaptive steps (scipy's DOP853). All draws of a
    batch are one system; ``tolerance``, which bounds the relative and the absolute local error,
    holds for each draw by itself. Training "both" factors is classic LoRA, one of them asymmetric.

    Raises:
        ValueError: times negative or not ascending.
        SolverError: the tolerance was not reached.
    """
    shapes, split = (start.A.shape, start.B.shape), start.A.size
    evaluations = count(1)

    def factors(states: Float[np.ndarray, "*times size"]) -> tuple[np.ndarray, ...]:
        parts = states[..., :split], states[..., split:]
        return tuple(p.reshape(*p.shape[:-1], *s) for p, s in zip(parts, shapes, strict=True))

    def slope(_time: float, state: Float[np.ndarray, " size"]) -> Float[np.ndarray, " size"]:
        if next(evaluations) > _MOST_EVALUATIONS:
            raise SolverError(
                f"the flow needs more than {_MOST_EVALUATIONS} evaluations of the gradient to "
                "reach its `tolerance`; loosen `tolerance`, shorten `times`, or scale `M` down"
            )
        grad_A, grad_B = problem.gradients(*factors(state))
        moves_A, moves_B = train_factors != "B", train_factors != "A"
        return -np.concatenate([moves_A * grad_A.ravel(), moves_B * grad_B.ravel()])

    # The solver bounds the root mean square over the whole vector; one draw's own root mean square
    # is at most sqrt(draws) times that. Below 100 eps scipy would warn and take its own tolerance.
    draws = int(np.prod(start.A.shape[:-2]))
    each = max(tolerance / np.sqrt(draws), 100 * np.finfo(float).eps)
    initial, span = np.concatenate([start.A.ravel(), start.B.ravel()]), (0.0, times[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        solution = solve_ivp(slope, span, initial, "DOP853", times, rtol=each, atol=each)
    if solution.status != 0 or not np.isfinite(solution.y).all():
        raise SolverError(
            f"the solver stopped before time {times[-1]:g} without reaching `tolerance` = "
            f"{tolerance:g} ({solution.message}); loosen `tolerance`, or scale `M` down"
        )
    states = np.ascontiguousarray(solution.y.T)
    # One time at a time: the residuals of all would not fit into the cache, nor always in memory.
    losses = np.stack([problem.loss(*factors(state)) for state in states], axis=-1)
    return Trajectory(losses, *(np.moveaxis(factor, 0, -3) for factor in factors(states)))
