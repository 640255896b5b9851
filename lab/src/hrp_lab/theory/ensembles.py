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
from jaxtyping import Complex, Float
from numpy.polynomial import legendre

# The known mean of the eigenvalues' sum must come out to this, or the quadrature is not trusted.
_TRUSTED = 1e-8


class QuadratureError(ArithmeticError):
    """The quadrature does not reproduce a sum that is known exactly."""


def pfaffian(X: Complex[np.ndarray, "batch even even"]) -> Complex[np.ndarray, " batch"]:
    """Return the Pfaffians of skew-symmetric matrices of even size: Pf(X)^2 = det(X).

    Elimination with pivoting (Parlett and Reid 1970), O(size^3), for a whole batch at once.

    >>> pfaffian(np.array([[[0, 3], [-3, 0]]], dtype=complex)).real.tolist()
    [3.0]
    """
    X = X.copy()
    batch, size = np.arange(X.shape[0]), X.shape[-1]
    product = np.ones(X.shape[0], dtype=X.dtype)
    for i in range(0, size - 1, 2):
        pivot = i + 1 + np.abs(X[:, i, i + 1 :]).argmax(1)
        order = np.tile(np.arange(size), (batch.size, 1))
        order[batch, i + 1], order[batch, pivot] = pivot, i + 1
        X = np.take_along_axis(X, order[:, :, None], 1)
        X = np.take_along_axis(X, order[:, None, :], 2)
        product *= np.where(pivot == i + 1, 1, -1) * X[:, i, i + 1]
        # An exactly zero pivot means a zero Pfaffian, which `product` holds already.
        divisor = np.where(X[:, i, i + 1] == 0, 1, X[:, i, i + 1])
        row = X[:, i, i + 2 :] / divisor[:, None]
        outer = row[:, :, None] * X[:, i + 2 :, i + 1][:, None, :]
        X[:, i + 2 :, i + 2 :] += outer - outer.swapaxes(1, 2)
    return product


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
    nodes, weights = legendre.leggauss(points)
    # x = sin^2(angle) makes the half-integer powers of the density whole ones.
    angles = (nodes + 1) * np.pi / 4
    weights = weights * np.pi / 4 * np.sin(2 * angles)
    counts = np.arange(q + 1)
    chances = _counts_above(q, exponents, angles, points)
    total = ones + float(weights @ (chances @ counts))
    if abs(total - fixed * drawn / dimension) > _TRUSTED:
        raise QuadratureError(
            f"the quadrature misses the mean of all squared cosines, {fixed * drawn / dimension:g},"
            f" by {abs(total - fixed * drawn / dimension):.1e} for dimension {dimension}; take "
            "random draws instead"
        )
    return ones + float(weights @ (chances @ np.minimum(counts, leading - ones)))


def _counts_above(
    q: int, exponents: tuple[int, int], angles: Float[np.ndarray, " cuts"], points: int
) -> Float[np.ndarray, "cuts counts"]:
    """Return P(exactly j of q Jacobi eigenvalues lie above sin^2(angle)), for j = 0..q.

    E z^N is a polynomial of degree q in z, and a ratio of Pfaffians: its values at the roots of
    unity give the coefficients.
    """
    roots = np.exp(2j * np.pi * np.arange(q + 1) / (q + 1))
    matrices = [_marked(q, exponents, angle, points, roots) for angle in angles]
    values = pfaffian(np.concatenate(matrices)).reshape(angles.size, q + 1)
    return np.fft.fft(values / values[:, :1], axis=1).real / (q + 1)


def _marked(
    q: int,
    exponents: tuple[int, int],
    cut: float,
    points: int,
    marks: Complex[np.ndarray, " marks"],
) -> Complex[np.ndarray, "marks even even"]:
    """Return de Bruijn's matrices with the weight multiplied by each mark z above the cut."""
    nodes, weights, antiderivative = _integration(points)
    halves = np.array([cut, np.pi / 2 - cut]) / 2
    angles = np.concatenate([halves[0] * (nodes + 1), cut + halves[1] * (nodes + 1)])
    at = np.concatenate([half * weights for half in halves])
    logs = exponents[0] * np.log(np.sin(angles)) + exponents[1] * np.log(np.cos(angles))
    f = _basis(np.sin(angles) ** 2, np.exp(logs - logs.max()), at, q)
    panels = [f[:points], f[points:]]
    low, high = (half * weights @ panel for half, panel in zip(halves, panels, strict=True))
    within = [
        _skew(half * antiderivative, half * weights, panel)
        for half, panel in zip(halves, panels, strict=True)
    ]
    z = marks[:, None, None]
    across = np.outer(low, high) - np.outer(high, low)
    X = within[0] + z * across + z**2 * within[1]
    return _even(X, low + marks[:, None] * high)


def mean_wishart_decay(dimension: int, rank: int, time: float) -> float:
    """Return E tr e^(-time G), G = A^T A, for a Gaussian A (dimension, rank) of variance 1.

    d/dh log Pf at h = 0, of the weight times 1 + h e^(-time x), is the mean of that sum. With
    x = y^2 the density's half-integer powers become whole ones.

    Raises:
        QuadratureError: the trace of G, known to be dimension * rank in mean, is missed.

    >>> bool(abs(mean_wishart_decay(6, 1, time=1.0) - 3.0 ** -3.0) < 1e-12)
    True
    """
    power = dimension - rank
    points = 96 + 2 * dimension
    nodes, weights, antiderivative = _integration(points)
    # Beyond this the largest singular value does not reach in float64 (Davidson and Szarek 2001).
    half = (np.sqrt(dimension) + np.sqrt(rank) + 9) / 2
    y = half * (nodes + 1)
    logs = power * np.log(y) - y**2 / 2
    f = _basis(y**2, np.exp(logs - logs.max()), half * weights, rank)
    skew = (half * antiderivative, half * weights)

    def mean_of(values: Float[np.ndarray, " points"]) -> float:
        X = _even(_skew(*skew, f)[None] + 0j, (skew[1] @ f)[None])[0]
        tilted = values[:, None] * f
        change = _skew(*skew, f + tilted) - _skew(*skew, f) - _skew(*skew, tilted)
        change = _even(change[None] + 0j, (skew[1] @ tilted)[None])[0]
        return float(np.trace(np.linalg.solve(X, change)).real / 2)

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
    values = legendre.legvander(nodes, points)
    integrals = np.empty((points, points))
    integrals[:, 0] = nodes + 1
    odd = 2 * np.arange(points) + 1
    integrals[:, 1:] = (values[:, 2:] - values[:, :-2]) / odd[1:]
    coefficients = odd[:, None] / 2 * (values[:, :points].T * weights)
    antiderivative = integrals @ coefficients
    for shared in (nodes, weights, antiderivative):
        shared.flags.writeable = False
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
) -> Float[np.ndarray, "count count"]:
    """Return int int sgn(y - x) f_i(x) f_j(y) over one panel."""
    return (2 * antiderivative @ f - weights @ f).T @ (weights[:, None] * f)


def _even(
    X: Complex[np.ndarray, "marks count count"],
    border: np.ndarray,
) -> Complex[np.ndarray, "marks even even"]:
    """Return the skew-symmetric part, bordered by the integrals where the count is odd."""
    X = (X - X.swapaxes(1, 2)) / 2
    count = X.shape[-1]
    if count % 2 == 0:
        return X
    bordered = np.zeros((X.shape[0], count + 1, count + 1), dtype=complex)
    bordered[:, :count, :count] = X
    bordered[:, :count, count], bordered[:, count, :count] = border, -border
    return bordered
