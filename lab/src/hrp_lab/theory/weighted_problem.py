"""Defines matrix factorisation with correlated inputs and weighted outputs.

L(A, B) = 1/2 ||Y^(1/2) (B A^T - M) X^(1/2)||_F^2 is half the mean squared error of ``B A^T x``
against ``M x`` over inputs of second moment X, the outputs' errors weighted by Y. Its Hessian in
the product is exactly X (x) Y: here the Kronecker-factored approximation is no approximation.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from hrp_lab.theory.problem import MatrixFactorization, orthonormal_columns


class WeightedFactorization(MatrixFactorization):
    """States the problem min over A, B of 1/2 ||Y^(1/2) (B A^T - M) X^(1/2)||_F^2.

    Only `loss`, `gradients` and what this class adds know the weights. The closed forms of
    `predict` and `predict_preheated`, and the optimum of the parent, are those of X = Y = I.

    Args:
        M: (m, n) target.
        X: (n, n) second moment of the inputs, symmetric and positive definite.
        Y: (m, m) weight of the outputs, likewise.

    Raises:
        ValueError: a shape does not fit ``M``, or a weight is not positive definite.
    """

    def __init__(
        self,
        M: Float[np.ndarray, "m n"],
        X: Float[np.ndarray, "inputs inputs"],
        Y: Float[np.ndarray, "outputs outputs"],
    ) -> None:
        super().__init__(M)
        for name, weight, size in (("X", X, self.n), ("Y", Y, self.m)):
            if weight.shape != (size, size):
                raise ValueError(f"`{name}` must have shape {(size, size)}, got {weight.shape}")
            least = float(np.linalg.eigvalsh(weight)[0])
            if not (np.allclose(weight, weight.T) and least > 0):
                raise ValueError(
                    f"`{name}` must be symmetric and positive definite, got a least eigenvalue of "
                    f"{least:g}"
                )
        self.X, self.Y = X, Y

    def loss(
        self, A: Float[np.ndarray, "*batch n rank"], B: Float[np.ndarray, "*batch m rank"]
    ) -> Float[np.ndarray, "*batch"]:
        """Return 1/2 tr(E^T Y E X) of the residual E = B A^T - M, for each member of the batch."""
        return self.distance(B @ A.swapaxes(-1, -2), self.M)

    def distance(
        self, left: Float[np.ndarray, "*batch m n"], right: Float[np.ndarray, "*#batch m n"]
    ) -> Float[np.ndarray, "*batch"]:
        """Return half the squared distance of two matrices in the metric of X and Y."""
        difference = left - right
        return np.asarray((difference * (self.Y @ difference @ self.X)).sum((-1, -2)) / 2)

    def gradients(
        self, A: Float[np.ndarray, "*batch n rank"], B: Float[np.ndarray, "*batch m rank"]
    ) -> tuple[Float[np.ndarray, "*batch n rank"], Float[np.ndarray, "*batch m rank"]]:
        """Return dL/dA = (Y E X)^T B and dL/dB = Y E X A, with E = B A^T - M."""
        weighted = self.Y @ (B @ A.swapaxes(-1, -2) - self.M) @ self.X
        return weighted.swapaxes(-1, -2) @ B, weighted @ A

    def limit_factor(
        self, A: Float[np.ndarray, "*draws n rank"]
    ) -> Float[np.ndarray, "*draws m rank"]:
        """Return B = M X A (A^T X A)^-1, where training B alone ends with A frozen, for every Y."""
        weighted = self.X @ A
        return self.M @ np.linalg.solve(
            A.swapaxes(-1, -2) @ weighted, weighted.swapaxes(-1, -2)
        ).swapaxes(-1, -2)


def weight_of_condition(
    rng: np.random.Generator, size: int, condition: float
) -> Float[np.ndarray, "size size"]:
    """Return a positive definite matrix of the given condition number and of trace ``size``.

    Its eigenvalues are spaced evenly in their logarithm, its eigenvectors Haar-distributed. Raises
    ``ValueError`` for a condition number below 1.
    """
    if not (np.isfinite(condition) and condition >= 1):
        raise ValueError(f"`condition` must be finite and at least 1, got {condition!r}")
    values = np.geomspace(1.0, 1.0 / condition, size)
    Q = orthonormal_columns(rng, size, size)
    weight = (Q * (values * size / values.sum())) @ Q.T
    return (weight + weight.T) / 2
