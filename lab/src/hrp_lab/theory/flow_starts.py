"""Makes the starts of low-rank runs: random, the target's own directions, or preheated ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from hrp.validation import check_choice, check_integer, check_positive
from hrp_lab.theory.matrix_arguments import checked_rank
from hrp_lab.theory.problem import Direction, MatrixFactorization, orthonormal_columns

RandomKind = Literal["gaussian", "orthogonal"]


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

    @property
    def rank(self) -> int:
        """Return the number of columns of both factors."""
        return int(self.A.shape[-1])


def start_at(
    problem: MatrixFactorization,
    directions: Float[np.ndarray, "*batch dimension rank"],
    direction: Direction = "A",
) -> Start:
    """Put ``directions`` (*batch, n or m, rank) into A (direction "A") or B ("B"), 0 elsewhere."""
    seen = problem.seen_from(direction)
    carrier = np.asarray(directions, dtype=np.float64)
    dimension, other = seen.n, seen.m
    if carrier.ndim < 2 or carrier.shape[-2] != dimension:
        raise ValueError(
            f"`directions` must have shape (..., {dimension}, rank) for direction "
            f"{direction!r}, got {carrier.shape}"
        )
    checked_rank("rank", carrier.shape[-1], dimension, "the carrier's dimension")
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

    Raises:
        ValueError: ``rank`` above the carrier's dimension, an unknown kind or direction.
    """
    check_choice("kind", kind, get_args(RandomKind))
    check_integer("draws", draws, minimum=1)
    dimension = problem.seen_from(direction).n
    checked_rank("rank", rank, dimension, "the carrier's dimension")
    if kind == "gaussian":
        carrier = rng.standard_normal((draws, dimension, rank)) / np.sqrt(dimension)
    else:
        carrier = orthonormal_columns(rng, dimension, rank, (draws,))
    return start_at(problem, carrier, direction)


def wise_start(
    problem: MatrixFactorization, rank: int, direction: Direction = "A", scale: float = 1.0
) -> Start:
    """Start at the target's own leading singular vectors, times ``scale``, in no batch (P2, P3)."""
    problem.check_rank("rank", rank)
    check_positive("scale", scale)
    leading = problem.seen_from(direction).svd[2][:rank].T
    return start_at(problem, scale * leading, direction)
