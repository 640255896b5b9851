"""States and checks docs/theory.md P11: the R x R cut is the optimum of the full space.

The predictions, `full_space_cut` and `least_cost`, know of no factors, of no R x R moments and
nothing of the library: symmetric square roots of X and Y, and one SVD of an m x n matrix. They are
compared with the library's `factored_svd` and `loss_truncation`, fed with the moments that hooks
would see. X (n, n) is the second moment of the inputs, Y (m, m) that of the output gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from hrp.spectra.truncation import DAMPING
from hrp_lab.theory.flow_preheating import spectrum_of
from hrp_lab.theory.problem import WeightedFactorization, orthonormal_columns, weight_of_condition
from hrp_lab.theory.rows import Pairs, Row, exact

_NO_DAMPING, _FULL_DAMPING = 1e-13, 1e13
SCALING = 0.7
_CONDITIONS = (1.0, 30.0, 1000.0)
_SHAPES = ((9, 14, 6, 2), (16, 10, 8, 3), (12, 12, 12, 5))


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


def cut_by_moments(
    A: Float[np.ndarray, "n R"],
    B: Float[np.ndarray, "m R"],
    X: Float[np.ndarray, "n n"],
    Y: Float[np.ndarray, "m m"],
    rank: int,
    damping: float = DAMPING,
) -> tuple[Float[np.ndarray, "m rank"], Float[np.ndarray, "rank n"]]:
    """Return the factors of the library's cut of SCALING * B A^T, by what a hook sees.

    A hook on ``lora_A`` sees C = E[z z^T] and G = E[dL/dz dL/dz^T] of its output z = A^T x. Both
    change basis by R x R matrices: Vh = (Vh A^+T) A^T, and U = SCALING * B N.
    """
    C, G = A.T @ X @ A, SCALING**2 * B.T @ Y @ B
    update = spectrum_of(A, SCALING * B)
    to_U, to_Vh = np.linalg.pinv(SCALING * B) @ update.U, update.Vh @ np.linalg.pinv(A.T)
    return update.metric_cut(to_U.T @ G @ to_U, to_Vh @ C @ to_Vh.T, rank, damping)


def truncation(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P11: the R x R cut is the full-space optimum, whatever the basis and the units."""
    best, least, costs, nested, units, bases, infinite, added = [Pairs() for _ in range(8)]
    settings = [(*shape, condition) for shape in _SHAPES for condition in _CONDITIONS]
    for problem, A, B, rank in [_draw(rng, *setting) for setting in settings]:
        X, Y, R = problem.X, problem.Y, A.shape[1]
        D, update = SCALING * B @ A.T, spectrum_of(A, SCALING * B)
        damped_X = damped(X, update.Vh.T, update.S, DAMPING)
        damped_Y = damped(Y, update.U, update.S, DAMPING)
        expected = full_space_cut(D, damped_X, damped_Y, rank)
        best.append((expected, cut(A, B, X, Y, rank)))
        units += [(expected, cut(A, B, X, factor**2 * Y, rank)) for factor in (1e-6, 1e6)]
        W = _change_of_basis(rng, R)
        bases.append((expected, cut(np.linalg.solve(W, A.T).T, B @ W, X, Y, rank)))
        left, right = cut_by_moments(A, B, X, Y, R - 1)
        for r in range(1, R):
            nested.append((full_space_cut(D, damped_X, damped_Y, r), left[:, :r] @ right[:r]))
        plain = update.plain_cut(rank)
        infinite.append((plain, cut(A, B, X, Y, rank, _FULL_DAMPING)))
        for weights, damping in (((X, Y), _NO_DAMPING), ((damped_X, damped_Y), DAMPING)):
            weighted = WeightedFactorization(D, *weights)
            cost = weighted.cost(cut(A, B, X, Y, rank, damping) - D)
            least.append((least_cost(D, *weights, rank), cost))
            costs.append((weighted.cost(plain - D), cost))
        # At the end of asymmetric preheating the gradient vanishes on all that the cut can reach.
        end = problem.limit_factor(A)
        after = problem.loss(A, end) + least_cost(end @ A.T, X, Y, rank)
        product = cut(A, end / SCALING, X, Y, rank, _NO_DAMPING)
        added.append((after, problem.cost(product - problem.M)))
    yield exact("P11", "the R x R cut is the best of all matrices of rank r", best)
    yield exact("P11", "its cost is the full-space minimum, damped and not", least)
    yield exact("P11", "it never costs more than the plain SVD, damped and not", costs, "<=")
    yield exact("P11", "the first r triples of the largest cut are the cut to r", nested)
    yield exact("P11", "a factor of 1e-6 or 1e6 of the gradient changes nothing", units)
    yield exact("P11", "nor does the basis of the temporary factors", bases)
    yield exact("P11", "damping to infinity is the plain SVD", infinite)
    yield exact("P11", "the loss after the cut is the preheated loss and the cost", added)


def cut(*arguments: Any) -> Float[np.ndarray, "m n"]:
    """Return the product of `cut_by_moments`, whose arguments it takes."""
    left, right = cut_by_moments(*arguments)
    return left @ right


def _draw(
    rng: np.random.Generator, m: int, n: int, preheat_rank: int, rank: int, condition: float
) -> tuple[WeightedFactorization, Float[np.ndarray, "n R"], Float[np.ndarray, "m R"], int]:
    """Draw a target with weights of the condition number, and factors of an update to cut."""
    M = rng.standard_normal((m, n))
    X, Y = (weight_of_condition(rng, size, condition) for size in (n, m))
    A, B = (rng.standard_normal((size, preheat_rank)) / np.sqrt(size) for size in (n, m))
    return WeightedFactorization(M, X, Y), A, B, rank


def _change_of_basis(rng: np.random.Generator, R: int) -> Float[np.ndarray, "R R"]:
    """Draw an invertible R x R matrix of condition 100 that is not symmetric."""
    left, right = orthonormal_columns(rng, R, R), orthonormal_columns(rng, R, R)
    return left * np.geomspace(10.0, 0.1, R) @ right
