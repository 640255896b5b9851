"""Finds the best cut of an update in the metric of the loss in full space: docs/theory.md P11.

``delta_weight`` D is (m, n), X (n, n) the second moment of the inputs, Y (m, m) that of the output
gradients, both positive definite. Nothing here knows of factors, of R x R moments or of the
library: symmetric square roots of X and Y, and one SVD of an m x n matrix.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def full_space_cut(
    delta_weight: Float[np.ndarray, "m n"],
    X: Float[np.ndarray, "n n"],
    Y: Float[np.ndarray, "m m"],
    rank: int,
) -> Float[np.ndarray, "m n"]:
    """Return Y^(-1/2) [Y^(1/2) D X^(1/2)]_r X^(-1/2), the best of all matrices of rank ``rank``.

    >>> D, X = np.diag([2.0, 1.0]), np.diag([1.0, 100.0])
    >>> np.abs(full_space_cut(D, X, np.eye(2), 1)).round(9).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    root_X, root_Y = _root(X), _root(Y)
    U, S, Vh = np.linalg.svd(root_Y @ delta_weight @ root_X, full_matrices=False)
    left = np.linalg.solve(root_Y, U[:, :rank] * S[:rank])
    return left @ np.linalg.solve(root_X, Vh[:rank].T).T


def least_cost(
    delta_weight: Float[np.ndarray, "m n"],
    X: Float[np.ndarray, "n n"],
    Y: Float[np.ndarray, "m m"],
    rank: int,
) -> float:
    """Return 1/2 sum_{i > r} s_i(Y^(1/2) D X^(1/2))^2, which no matrix of the rank can undercut.

    >>> least_cost(np.diag([2.0, 1.0]), np.diag([1.0, 100.0]), np.eye(2), 1)
    2.0
    """
    values = np.linalg.svd(_root(Y) @ delta_weight @ _root(X), compute_uv=False)
    return float(np.square(values[rank:]).sum() / 2)


def damped(
    metric: Float[np.ndarray, "size size"],
    directions: Float[np.ndarray, "size R"],
    S: Float[np.ndarray, " R"],
    damping: float,
) -> Float[np.ndarray, "size size"]:
    """Return metric + damping * mean * I, the mean of v_i^T metric v_i taken with weights S.

    In full space this is what `hrp.spectra.truncation` adds to its R x R metrics: ``directions``
    are the singular vectors of the update on the metric's side, as columns.
    """
    lengths = (directions * (metric @ directions)).sum(0)
    return metric + damping * float(lengths @ S / S.sum()) * np.eye(len(metric))


def _root(metric: Float[np.ndarray, "size size"]) -> Float[np.ndarray, "size size"]:
    values, vectors = np.linalg.eigh(metric)
    return (vectors * np.sqrt(values)) @ vectors.T
