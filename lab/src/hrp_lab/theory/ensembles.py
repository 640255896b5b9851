"""Computes exact expectations over random subspaces and Gaussian matrices, by quadrature.

Squared cosines between a fixed and a random subspace are real Jacobi eigenvalues, those of
``A^T A`` for Gaussian A real Laguerre (Wishart) eigenvalues; both have a joint density
prod w(x_i) prod_{i<j} |x_i - x_j|. De Bruijn (1955) turns the expectation of a product over the
eigenvalues into a Pfaffian, Pf<p_i, p_j> with <f, g> = int int sgn(y - x) f(x) g(y) w(x) w(y),
for any basis p of the polynomials. How HRP's expected loss follows: docs/theory.md, P6 and P9.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.polynomial import chebyshev, legendre
from scipy.linalg import hessenberg

# The known mean of the eigenvalues' sum must come out to this, or the quadrature is not trusted.
_TRUSTED = 1e-8


class QuadratureError(ArithmeticError):
    """The quadrature does not reproduce a sum that is known exactly."""


def pfaffian(X: Float[np.ndarray, "even even"]) -> float:
    """Return the Pfaffian of a skew-symmetric matrix of even size: Pf(X)^2 = det(X).

    In Hessenberg form a skew-symmetric matrix is tridiagonal, and Pf(Q H Q^T) = det(Q) Pf(H).

    >>> pfaffian(np.array([[0.0, 3.0], [-3.0, 0.0]]))
    3.0
    """
    H, Q = hessenberg(X, calc_q=True)
    return float(np.linalg.det(Q) * np.diag(H, 1)[::2].prod())


def mean_leading_cosines(dimension: int, fixed: int, drawn: int, leading: int) -> float:
    """Return E of the sum of the ``leading`` largest squared cosines between two subspaces.

    One subspace of dimension ``fixed``, one Haar-random of dimension ``drawn``, of R^dimension.
    The squared cosines are ``max(0, fixed + drawn - dimension)`` ones, and q = min(fixed, drawn,
    their codimensions) values of density prod x^((|fixed - drawn| - 1) / 2)
    (1 - x)^((|dimension - fixed - drawn| - 1) / 2) prod |x_i - x_j| (Muirhead 1982, 3.3). Of those,
    E sum of the largest = int_0^1 E min(N(x), leading) dx, N(x) the count above x.

    Raises:
        QuadratureError: the sum of all, known to be fixed * drawn / dimension, is missed; take
            Monte Carlo. Holds to 1e-12 for dimensions up to some hundreds.

    >>> round(mean_leading_cosines(32, fixed=1, drawn=8, leading=1), 12)
    0.25
    """
    ones = max(0, fixed + drawn - dimension)
    q = min(fixed, drawn, dimension - fixed, dimension - drawn)
    if q == 0 or leading <= ones:
        return float(min(leading, ones, fixed, drawn))
    exponents = abs(fixed - drawn), abs(dimension - fixed - drawn)
    points = max(48, sum(exponents) // 3 + 2 * q + 24)
    nodes, weights, _ = _integration(points)
    # x = sin^2(angle) makes the half-integer powers of the density whole ones.
    angles = (nodes + 1) * np.pi / 4
    weights = weights * np.pi / 4 * np.sin(2 * angles)
    chances = np.array([_counts_above(q, exponents, angle, points) for angle in angles])
    counts = np.arange(q + 1)
    missed = ones + float(weights @ (chances @ counts)) - fixed * drawn / dimension
    if abs(missed) > _TRUSTED:
        raise QuadratureError(
            f"the quadrature misses the mean of all squared cosines, {fixed * drawn / dimension:g},"
            f" by {missed:.1e} for dimension {dimension}; take random draws instead"
        )
    return ones + float(weights @ (chances @ np.minimum(counts, leading - ones)))


def _counts_above(
    q: int, exponents: tuple[int, int], cut: float, points: int
) -> Float[np.ndarray, " counts"]:
    """Return P(exactly j of q Jacobi eigenvalues lie above sin^2(cut)), for j = 0..q.

    E z^N is a polynomial of degree q in z, and a ratio of Pfaffians, with the weight multiplied by
    z above the cut: its values at q + 1 points give the coefficients.
    """
    nodes, weights, antiderivative = _integration(points)
    halves = np.array([cut, np.pi / 2 - cut]) / 2
    angles = np.concatenate([halves[0] * (nodes + 1), cut + halves[1] * (nodes + 1)])
    at = np.concatenate([half * weights for half in halves])
    logs = exponents[0] * np.log(np.sin(angles)) + exponents[1] * np.log(np.cos(angles))
    f = _basis(np.sin(angles) ** 2, np.exp(logs - logs.max()), at, q)
    panels = [f[:points], f[points:]]
    low, high = (half * weights @ panel for half, panel in zip(halves, panels, strict=True))
    below, above = (
        _skew(half * antiderivative, half * weights, panel, panel)
        for half, panel in zip(halves, panels, strict=True)
    )
    across = np.outer(low, high) - np.outer(high, low)

    def expected_power(z: float) -> float:
        return pfaffian(_even(below + z * across + z**2 * above, low + z * high))

    marks = chebyshev.chebpts1(q + 1)
    values = np.array([expected_power(z) for z in marks]) / expected_power(1.0)
    return np.linalg.solve(np.vander(marks, increasing=True), values)


def mean_wishart_decay(dimension: int, rank: int, time: float) -> float:
    """Return E tr e^(-time G), G = A^T A, for a Gaussian A (dimension, rank) of variance 1.

    d/dh log Pf at h = 0, of the weight times 1 + h e^(-time x), is the mean of that sum. With
    x = y^2 the density's half-integer powers become whole ones.

    Raises:
        QuadratureError: the trace of G, known to be dimension * rank in mean, is missed.

    >>> bool(abs(mean_wishart_decay(6, 1, time=1.0) - 3.0 ** -3.0) < 1e-12)
    True
    """
    nodes, weights, antiderivative = _integration(96 + 2 * dimension)
    # Beyond this the largest singular value does not reach in float64 (Davidson and Szarek 2001).
    half = (np.sqrt(dimension) + np.sqrt(rank) + 9) / 2
    y, at, integral = half * (nodes + 1), half * weights, half * antiderivative
    logs = (dimension - rank) * np.log(y) - y**2 / 2
    f = _basis(y**2, np.exp(logs - logs.max()), at, rank)
    X = _even(_skew(integral, at, f, f), at @ f)

    def mean_of(values: Float[np.ndarray, " points"]) -> float:
        tilted = values[:, None] * f
        change = _skew(integral, at, f, tilted) + _skew(integral, at, tilted, f)
        return float(np.trace(np.linalg.solve(X, _even(change, at @ tilted))) / 2)

    if abs(mean_of(y**2) / (dimension * rank) - 1) > _TRUSTED:
        raise QuadratureError(
            f"the quadrature misses the mean trace for dimension {dimension}, rank {rank}; take "
            "random draws instead"
        )
    return mean_of(np.exp(-time * y**2))


@lru_cache(maxsize=4)
def _integration(
    points: int,
) -> tuple[
    Float[np.ndarray, " points"], Float[np.ndarray, " points"], Float[np.ndarray, "points points"]
]:
    """Return Gauss-Legendre nodes and weights on [-1, 1], and the integrals from -1 as a matrix."""
    nodes, weights = legendre.leggauss(points)
    norms = np.arange(points)[:, None] + 0.5
    coefficients = norms * (legendre.legvander(nodes, points - 1).T * weights)
    antiderivative = legendre.legvander(nodes, points) @ legendre.legint(coefficients, lbnd=-1)
    return nodes, weights, antiderivative


def _basis(
    x: Float[np.ndarray, " points"],
    density: Float[np.ndarray, " points"],
    weights: Float[np.ndarray, " points"],
    count: int,
) -> Float[np.ndarray, "points count"]:
    """Return orthonormal polynomials below degree ``count``, times the density (Stieltjes)."""
    columns = np.zeros((x.size, count))
    new = density
    for i in range(count):
        for _ in range(2):  # Gram-Schmidt once is not orthogonal to rounding; twice is
            new = new - columns @ (columns.T @ (weights * new))
        columns[:, i] = new / np.sqrt(weights @ new**2)
        new = x * columns[:, i]
    return columns


def _skew(
    antiderivative: Float[np.ndarray, "points points"],
    weights: Float[np.ndarray, " points"],
    f: Float[np.ndarray, "points count"],
    g: Float[np.ndarray, "points count"],
) -> Float[np.ndarray, "count count"]:
    """Return int int sgn(y - x) f_i(x) g_j(y) over one panel."""
    return (2 * antiderivative @ f - weights @ f).T @ (weights[:, None] * g)


def _even(
    X: Float[np.ndarray, "count count"], border: Float[np.ndarray, " count"]
) -> Float[np.ndarray, "even even"]:
    """Return the skew-symmetric part, bordered by the integrals where the count is odd."""
    X = (X - X.T) / 2
    if len(X) % 2 == 0:
        return X
    return np.block([[X, border[:, None]], [-border[None, :], np.zeros((1, 1))]])
