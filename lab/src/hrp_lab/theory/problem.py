"""Defines matrix factorisation: the target ``M``, the loss 1/2 ||B A^T - M||_F^2, its gradients.

Shapes are those of docs/theory.md: A is (n, rank), B is (m, rank), M is (m, n), so ``A = lora_A^T``
and ``B = lora_B`` at scaling 1. Everything is float64, and may carry leading batch axes of draws.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float

from hrp.validation import check_choice, check_integer, check_positive
from hrp_lab.theory.matrix_arguments import checked_rank

Direction = Literal["A", "B"]


class MatrixFactorization:
    """States the problem min over A, B of L(A, B) = 1/2 ||B A^T - M||_F^2.

    Args:
        M: (m, n) target, anything that numpy makes a matrix of; kept as a float64 copy.

    Raises:
        ValueError: ``M`` is not a matrix, is empty, or holds NaN or infinity.

    >>> problem = MatrixFactorization(np.diag([2.0, 1.0]))
    >>> problem.optimum(rank=1), problem.energy
    (0.5, 5.0)
    """

    def __init__(self, M: Any) -> None:
        M = np.array(M, dtype=np.float64)
        if M.ndim != 2 or not M.size:
            raise ValueError(f"`M` must be a matrix (m, n) with m, n >= 1, got shape {M.shape}")
        if not np.isfinite(M).all():
            count = int((~np.isfinite(M)).sum())
            raise ValueError(f"`M` must be finite, got {count} NaN or infinite entries")
        M.flags.writeable = False
        self.M: Float[np.ndarray, "m n"] = M

    def __repr__(self) -> str:
        return f"MatrixFactorization(m={self.m}, n={self.n})"

    @property
    def m(self) -> int:
        """Return the number of rows of ``M``: the output dimension, of ``B``."""
        return self.M.shape[0]

    @property
    def n(self) -> int:
        """Return the number of columns of ``M``: the input dimension, of ``A``."""
        return self.M.shape[1]

    @cached_property
    def svd(
        self,
    ) -> tuple[Float[np.ndarray, "m k"], Float[np.ndarray, " k"], Float[np.ndarray, "k n"]]:
        """Return the thin SVD of ``M``: U, singular values descending, Vh."""
        U, S, Vh = np.linalg.svd(self.M, full_matrices=False)
        return U, S, Vh

    @property
    def singular_values(self) -> Float[np.ndarray, " k"]:
        """Return the singular values s_1 >= s_2 >= ... of ``M``."""
        return self.svd[1]

    @cached_property
    def energy(self) -> float:
        """Return ||M||_F^2, twice the loss at A = 0 or B = 0."""
        return float(np.square(self.M).sum())

    @cached_property
    def mirror(self) -> MatrixFactorization:
        """Return the problem of M^T, in which A and B change roles."""
        return MatrixFactorization(self.M.T)

    def seen_from(self, direction: Direction) -> MatrixFactorization:
        """Return the problem in which the factor ``direction`` is A: itself, or its mirror."""
        check_choice("direction", direction, get_args(Direction))
        return self if direction == "A" else self.mirror

    def held_energy(self, rank: int) -> float:
        """Return sum_{i <= rank} s_i^2: what the best rank-``rank`` product holds of ||M||^2."""
        self.check_rank("rank", rank)
        return float(np.square(self.singular_values[:rank]).sum())

    def optimum(self, rank: int) -> float:
        """Return L* = 1/2 sum_{i > rank} s_i^2, the least loss of that rank (Eckart and Young)."""
        self.check_rank("rank", rank)
        return float(np.square(self.singular_values[rank:]).sum()) / 2

    def effective_rank(self, rank: int = 1) -> float:
        """Return k_r = rank * ||M||^2 / sum_{i <= rank} s_i^2, from ``rank`` up to min(m, n).

        The stable rank for ``rank=1``, the count of equal singular values of a flat target; it is
        what bounds the gain of preheating (**derived**, docs/theory.md, P8).

        Raises ``ValueError`` if ``M`` is zero.
        """
        held = self.held_energy(rank)
        if held == 0:
            raise ValueError("an effective rank needs a target `M` that is not zero")
        return rank * self.energy / held

    def loss(
        self, A: Float[np.ndarray, "*batch n rank"], B: Float[np.ndarray, "*batch m rank"]
    ) -> Float[np.ndarray, "*batch"]:
        """Return 1/2 ||B A^T - M||_F^2, for each element of the batch."""
        return np.asarray(np.square(B @ A.swapaxes(-1, -2) - self.M).sum((-1, -2)) / 2)

    def gradients(
        self, A: Float[np.ndarray, "*batch n rank"], B: Float[np.ndarray, "*batch m rank"]
    ) -> tuple[Float[np.ndarray, "*batch n rank"], Float[np.ndarray, "*batch m rank"]]:
        """Return dL/dA = (B A^T - M)^T B and dL/dB = (B A^T - M) A."""
        residual = B @ A.swapaxes(-1, -2) - self.M
        return residual.swapaxes(-1, -2) @ B, residual @ A

    def check_rank(self, name: str, rank: int) -> int:
        """Raise ``ValueError``, naming the parameter, unless 1 <= rank <= min(m, n)."""
        return checked_rank(name, rank, min(self.m, self.n), "min(m, n)")

    def check_preheat_rank(self, preheat_rank: int, rank: int, dimension: int) -> None:
        """Raise ``ValueError`` unless 1 <= rank <= preheat_rank <= dimension, of the factor."""
        self.check_rank("rank", rank)
        checked_rank("preheat_rank", preheat_rank, dimension, "the frozen factor's dimension")
        if preheat_rank < rank:
            raise ValueError(
                f"`preheat_rank` must be at least `rank` = {rank}, got {preheat_rank}; "
                "raise `preheat_rank`"
            )


def target_of_spectrum(
    singular_values: Any, m: int, n: int, rng: np.random.Generator | None = None
) -> MatrixFactorization:
    """Make a target of shape (m, n) with the given singular values.

    It is diagonal, or has random singular vectors (Haar) if ``rng`` is given. Raises ``ValueError``
    if there are more values than min(m, n), or a negative one.

    >>> target_of_spectrum([2.0, 1.0], 2, 3).M.tolist()
    [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    values = np.atleast_1d(np.asarray(singular_values, dtype=np.float64))
    checked_rank("len(singular_values)", values.size, min(m, n), "min(m, n)")
    if (values < 0).any():
        raise ValueError(f"`singular_values` must be at least 0, got {values.min():g}")
    M = np.zeros((m, n))
    M[np.arange(values.size), np.arange(values.size)] = values
    if rng is not None:
        M = orthonormal_columns(rng, m, m) @ M @ orthonormal_columns(rng, n, n).T
    return MatrixFactorization(M)


def flat_target(k: int, m: int, n: int, level: float = 1.0) -> MatrixFactorization:
    """Make diag(I_k, 0) times ``level``: Figure 1's target is ``flat_target(12, 32, 32)``."""
    checked_rank("k", k, min(m, n), "min(m, n)")
    check_positive("level", level)
    return target_of_spectrum(np.full(k, level), m, n)


def geometric_target(m: int, n: int, ratio: float = 0.8, first: float = 1.0) -> MatrixFactorization:
    """Make s_i = first * ratio^(i-1), i = 1..min(m, n); ``ratio`` in (0, 1]."""
    check_positive("first", first)
    if not 0 < ratio <= 1:
        raise ValueError(f"`ratio` must be in (0, 1], got {ratio!r}")
    return target_of_spectrum(first * ratio ** np.arange(min(m, n)), m, n)


def power_law_target(
    m: int, n: int, exponent: float = 1.0, first: float = 1.0
) -> MatrixFactorization:
    """Make s_i = first * i^-exponent, i = 1..min(m, n)."""
    check_positive("first", first)
    check_positive("exponent", exponent)
    numbers = np.arange(1, min(m, n) + 1)
    return target_of_spectrum(first * numbers**-exponent, m, n)


def orthonormal_columns(
    rng: np.random.Generator, dimension: int, rank: int, draws: tuple[int, ...] = ()
) -> Float[np.ndarray, "*draws dimension rank"]:
    """Draw Haar-distributed orthonormal columns; ``ValueError`` if rank > dimension."""
    check_integer("dimension", dimension, minimum=1)
    checked_rank("rank", rank, dimension, "the dimension")
    Q, R = np.linalg.qr(rng.standard_normal((*draws, dimension, rank)))
    # Without this the signs, fixed by LAPACK's convention, would not be random.
    signs = np.sign(np.diagonal(R, axis1=-2, axis2=-1))
    return Q * signs[..., None, :]
