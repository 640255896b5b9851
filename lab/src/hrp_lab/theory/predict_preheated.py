"""Gives the closed forms for starts found by asymmetric preheating: docs/theory.md P4 to P8.

``frozen`` names the factor that preheating freezes, at a random start of ``preheat_rank`` columns
(the library's ``train_factors`` names the other one). The start in its own direction is P4, in the
other direction P5. The formulas hold for orthonormal frozen columns at any time > 0, and for
Gaussian ones in the limit of long preheating (docs/theory.md, P7); that the other direction never
loses holds for all of them, at any time.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from hrp_lab.theory.ensembles import mean_leading_cosines
from hrp_lab.theory.matrix_arguments import checked_rank
from hrp_lab.theory.predict import random_limit
from hrp_lab.theory.problem import Direction, MatrixFactorization


def same_direction_loss(
    problem: MatrixFactorization,
    frozen_columns: Float[np.ndarray, "*batch dimension preheat_rank"],
    rank: int,
    frozen: Direction = "A",
) -> Float[np.ndarray, "*batch"]:
    """Return L_A = 1/2 (||M||^2 - sum_{i <= rank} s_i(M P)^2) (P4, **derived**).

    P projects on the frozen columns.
    With ``frozen="B"``: direction "B" and P M. Raises ``ValueError`` for rank > preheat_rank.
    """
    seen, Q = _frozen_basis(problem, frozen_columns, rank, frozen)
    values = np.linalg.svd(seen.M @ Q, compute_uv=False)[..., :rank]
    return np.asarray((seen.energy - np.square(values).sum(-1)) / 2)


def other_direction_loss(
    problem: MatrixFactorization,
    frozen_columns: Float[np.ndarray, "*batch dimension preheat_rank"],
    rank: int,
    frozen: Direction = "A",
) -> Float[np.ndarray, "*batch"]:
    """Return L_B = 1/2 ||(I - U_r U_r^T) M||^2, U_r leading left vectors of M P (P5, **derived**).

    With ``frozen="B"``: direction "A" and the right vectors of P M.
    """
    seen, Q = _frozen_basis(problem, frozen_columns, rank, frozen)
    leading = np.linalg.svd(seen.M @ Q, full_matrices=False)[0][..., :rank]
    return np.asarray(
        (seen.energy - np.square(leading.swapaxes(-1, -2) @ seen.M).sum((-1, -2))) / 2
    )


def _frozen_basis(
    problem: MatrixFactorization, columns: np.ndarray, rank: int, frozen: Direction
) -> tuple[MatrixFactorization, np.ndarray]:
    seen = problem.seen_from(frozen)
    problem.check_preheat_rank(columns.shape[-1], rank, seen.n)
    return seen, np.linalg.qr(columns)[0]


def flat_same_direction_mean(
    k: int, dimension: int, preheat_rank: int, rank: int, level: float = 1.0
) -> float:
    """Return E L_A exactly, for ``k`` equal singular values ``level`` (P6, **derived**).

    level^2 / 2 (k - E sum of the ``rank`` largest squared cosines between the target's row space
    and the frozen columns): real Jacobi eigenvalues, by quadrature to about 1e-12.
    ``dimension`` is n, the frozen factor's.

    >>> round(flat_same_direction_mean(12, 32, preheat_rank=6, rank=2), 4)
    5.3684
    """
    checked_rank("k", k, dimension, "dimension")
    checked_rank("preheat_rank", preheat_rank, dimension, "dimension")
    checked_rank("rank", rank, preheat_rank, "preheat_rank")
    return level**2 / 2 * (k - mean_leading_cosines(dimension, k, preheat_rank, rank))


def same_direction_ceiling(
    problem: MatrixFactorization, preheat_rank: int, rank: int, frozen: Direction = "A"
) -> float:
    """Return the upper bound of E L_A, the chord (P8, **derived**).

    It runs from random at R = rank to L* at R = n:
    ((n - R) E L_random + (R - rank) L*) / (n - rank); equality at both ends. In terms of the
    effective rank k_r = rank ||M||^2 / sum_{i <= rank} s_i^2, the gain over random is at least
    (R - rank) / (n - rank) * rank * (1 / k_r - 1 / n) * ||M||^2 / 2.

    >>> round(same_direction_ceiling(MatrixFactorization(np.diag([1.0, 0.0, 0.0])), 2, 1), 6)
    0.166667
    """
    n = problem.seen_from(frozen).n
    problem.check_preheat_rank(preheat_rank, rank, n)
    if n == rank:
        return problem.optimum(rank)
    share = (preheat_rank - rank) / (n - rank)
    return (1 - share) * random_limit(problem, rank, frozen) + share * problem.optimum(rank)


def same_direction_floor(
    problem: MatrixFactorization, preheat_rank: int, rank: int, frozen: Direction = "A"
) -> float:
    """Return the larger of L* and random LoRA's loss at rank R, below E L_A (P8, **derived**)."""
    problem.check_preheat_rank(preheat_rank, rank, problem.seen_from(frozen).n)
    return max(problem.optimum(rank), random_limit(problem, preheat_rank, frozen))


def range_finder_bound(
    problem: MatrixFactorization, preheat_rank: int, frozen: Direction = "A"
) -> float:
    """Return the least bound of E 1/2 ||(I - Q Q^T) M||^2, Q the whole range of M P (P5).

    1/2 (1 + k / (p - 1)) sum_{j > k} s_j^2, preheat_rank = k + p, at the best k >= 0 with p >= 2
    (Halko, Martinsson and Tropp 2011, Theorem 10.5).

    Raises ``ValueError`` for a preheat rank below 2 or above the frozen factor's dimension.
    """
    n = problem.seen_from(frozen).n
    checked_rank("preheat_rank", preheat_rank, n, "the frozen factor's dimension")
    if preheat_rank < 2:
        raise ValueError("`preheat_rank` must be at least 2 for this bound, got 1")
    tails = problem.energy - np.concatenate([[0], np.cumsum(problem.singular_values**2)])
    k = np.arange(min(preheat_rank - 1, tails.size))
    return float(((1 + k / (preheat_rank - k - 1)) * np.maximum(tails[k], 0)).min() / 2)
