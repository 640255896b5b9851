"""Defines matrix factorisation: the target ``M``, the loss 1/2 ||B A^T - M||_F^2, its gradients.

Shapes are those of docs/theory.md: A is (n, rank), B is (m, rank), M is (m, n), so ``A = lora_A^T``
and ``B = lora_B`` at scaling 1. Everything is float64, and may carry leading batch axes of draws.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from hrp.validation import check_integer, check_positive

Direction = Literal["A", "B"]
SIDES: tuple[Direction, ...] = ("A", "B")
OTHER: dict[Direction, Direction] = {"A": "B", "B": "A"}


class MatrixFactorization:
    """States the problem min over A, B of L(A, B) = 1/2 ||B A^T - M||_F^2, M being (m, n).

    >>> problem = MatrixFactorization(np.diag([2.0, 1.0]))
    >>> problem.optimum(rank=1), problem.energy
    (0.5, 5.0)
    """

    def __init__(self, M: Float[np.ndarray, "m n"]) -> None:
        self.M = M
        self.m, self.n = M.shape

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
        return self if direction == "A" else self.mirror

    def held_energy(self, rank: int) -> float:
        """Return sum_{i <= rank} s_i^2: what the best rank-``rank`` product holds of ||M||^2."""
        return float(np.square(self.singular_values[:rank]).sum())

    def optimum(self, rank: int) -> float:
        """Return L* = 1/2 sum_{i > rank} s_i^2, the least loss of that rank (Eckart and Young)."""
        return float(np.square(self.singular_values[rank:]).sum()) / 2

    def effective_rank(self, rank: int = 1) -> float:
        """Return k_r = rank * ||M||^2 / sum_{i <= rank} s_i^2, from ``rank`` up to min(m, n).

        The stable rank for ``rank=1``, the count of equal singular values of a flat target; it is
        what bounds the gain of preheating (**derived**, docs/theory.md, P8).
        """
        return rank * self.energy / self.held_energy(rank)

    def weigh(self, residual: Float[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "*batch m n"]:
        """Return the gradient of `cost` in the residual, which is the residual itself."""
        return residual

    def cost(self, residual: Float[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "*batch"]:
        """Return half the squared norm of ``residual``, for each member of the batch."""
        return np.asarray((residual * self.weigh(residual)).sum((-1, -2)) / 2)

    def loss(
        self, A: Float[np.ndarray, "*batch n rank"], B: Float[np.ndarray, "*batch m rank"]
    ) -> Float[np.ndarray, "*batch"]:
        """Return the cost of B A^T - M, for each member of the batch."""
        return self.cost(B @ A.swapaxes(-1, -2) - self.M)

    def gradients(
        self, A: Float[np.ndarray, "*batch n rank"], B: Float[np.ndarray, "*batch m rank"]
    ) -> tuple[Float[np.ndarray, "*batch n rank"], Float[np.ndarray, "*batch m rank"]]:
        """Return dL/dA = (B A^T - M)^T B and dL/dB = (B A^T - M) A, the residual weighed."""
        residual = self.weigh(B @ A.swapaxes(-1, -2) - self.M)
        return residual.swapaxes(-1, -2) @ B, residual @ A

    def check_ranks(self, rank: int, preheat_rank: int, dimension: int) -> None:
        """Raise ``ValueError`` unless 1 <= r <= R <= the frozen factor's ``dimension``."""
        check_integer("rank", rank, minimum=1, maximum=min(self.m, self.n))
        check_integer("preheat_rank", preheat_rank, minimum=rank, maximum=dimension)


class WeightedFactorization(MatrixFactorization):
    """States the problem min over A, B of 1/2 ||Y^(1/2) (B A^T - M) X^(1/2)||_F^2.

    It is half the mean squared error of ``B A^T x`` against ``M x`` over inputs of second moment
    X (n, n), the outputs' errors weighted by Y (m, m). Its Hessian in the product is exactly
    X (x) Y: here the Kronecker-factored approximation is no approximation. The optimum and all
    closed forms but P11's are those of X = Y = I.
    """

    def __init__(
        self,
        M: Float[np.ndarray, "m n"],
        X: Float[np.ndarray, "n n"],
        Y: Float[np.ndarray, "m m"],
    ) -> None:
        super().__init__(M)
        self.X, self.Y = X, Y

    def weigh(self, residual: Float[np.ndarray, "*batch m n"]) -> Float[np.ndarray, "*batch m n"]:
        """Return Y E X, the gradient of `cost` in the residual E."""
        return self.Y @ residual @ self.X

    def limit_factor(
        self, A: Float[np.ndarray, "*draws n rank"]
    ) -> Float[np.ndarray, "*draws m rank"]:
        """Return B = M X A (A^T X A)^-1, where training B alone ends with A frozen, for every Y."""
        weighted = self.X @ A
        return self.M @ np.linalg.solve(
            A.swapaxes(-1, -2) @ weighted, weighted.swapaxes(-1, -2)
        ).swapaxes(-1, -2)


def check_ascending(name: str, kind: str, values: tuple[int | float, ...], above: float) -> None:
    """Raise ``ValueError`` unless there are values, above ``above``, finite and ascending."""
    rising = all(low < high for low, high in pairwise((above, *values, np.inf)))
    if not (values and rising):
        raise ValueError(f"`{name}` must be {kind}, ascending, got {values}")


def target_of_spectrum(
    singular_values: Any, m: int, n: int, rng: np.random.Generator | None = None
) -> MatrixFactorization:
    """Make a target of shape (m, n) with the given singular values, min(m, n) of them at most.

    It is diagonal, or has random singular vectors (Haar) if ``rng`` is given.

    >>> target_of_spectrum([2.0, 1.0], 2, 3).M.tolist()
    [[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    M = np.zeros((m, n))
    np.fill_diagonal(M[: len(singular_values), : len(singular_values)], singular_values)
    if rng is not None:
        M = orthonormal_columns(rng, m, m) @ M @ orthonormal_columns(rng, n, n).T
    return MatrixFactorization(M)


def flat_target(k: int, m: int, n: int, level: float = 1.0) -> MatrixFactorization:
    """Make diag(I_k, 0) times ``level``: Figure 1's target is ``flat_target(12, 32, 32)``."""
    check_integer("k", k, minimum=1, maximum=min(m, n))
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
    return target_of_spectrum(first * np.arange(1, min(m, n) + 1) ** -exponent, m, n)


def orthonormal_columns(
    rng: np.random.Generator, dimension: int, rank: int, draws: tuple[int, ...] = ()
) -> Float[np.ndarray, "*draws dimension rank"]:
    """Draw Haar-distributed orthonormal columns, at most ``dimension`` of them."""
    Q, R = np.linalg.qr(rng.standard_normal((*draws, dimension, rank)))
    # Without this the signs, fixed by LAPACK's convention, would not be random.
    signs = np.sign(np.diagonal(R, axis1=-2, axis2=-1))
    return Q * signs[..., None, :]


def weight_of_condition(
    rng: np.random.Generator, size: int, condition: float
) -> Float[np.ndarray, "size size"]:
    """Return a positive definite matrix of the given condition number and of trace ``size``.

    Its eigenvalues are spaced evenly in their logarithm, its eigenvectors Haar-distributed.
    """
    values = np.geomspace(1.0, 1.0 / condition, size)
    Q = orthonormal_columns(rng, size, size)
    weight = (Q * (values * size / values.sum())) @ Q.T
    return (weight + weight.T) / 2
