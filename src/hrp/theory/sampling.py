"""Means over random draws with their standard errors, where no closed form exists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hrp.theory.checks import checked_count
from hrp.theory.predict_preheated import other_direction_loss, same_direction_loss
from hrp.theory.problem import Direction, MatrixFactorization, orthonormal_columns


class Estimate(NamedTuple):
    """A sample mean and its standard error (0 for a constant)."""

    mean: float
    standard_error: float


def estimate(values: Float[np.ndarray, " draws"]) -> Estimate:
    """Mean over draws; raises ``ValueError`` for fewer than two, which have no spread.

    >>> estimate(np.array([1.0, 3.0]))
    Estimate(mean=2.0, standard_error=1.0)
    """
    if values.size < 2:
        raise ValueError(f"`draws` must be at least 2 for a standard error, got {values.size}")
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))


def preheated_losses(
    problem: MatrixFactorization,
    preheat_rank: int,
    rank: int,
    rng: np.random.Generator,
    draws: int,
    frozen: Direction = "A",
) -> dict[Direction, Float[np.ndarray, " draws"]]:
    """Limit losses of both directions over the same ``draws`` of the frozen columns (P4, P5)."""
    checked_count("draws", draws)
    dimension = problem.seen_from(frozen).n
    problem.check_preheat_rank(preheat_rank, rank, dimension)
    columns = orthonormal_columns(rng, dimension, preheat_rank, (draws,))
    other: Direction = "B" if frozen == "A" else "A"
    return {
        frozen: same_direction_loss(problem, columns, rank, frozen),
        other: other_direction_loss(problem, columns, rank, frozen),
    }
