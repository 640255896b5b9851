"""Checks docs/theory.md P11: the R x R cut against the optimum of the full space.

Measurements come from the library's `factored_svd` and `loss_truncation`, fed with the moments
that hooks would see; predictions from `predict_truncation` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from hrp.spectra.truncation import DAMPING
from hrp_lab.theory import predict_truncation
from hrp_lab.theory.flow_preheating import Preheated, spectrum_of
from hrp_lab.theory.metric_cut import metric_cut, metrics_of_moments, plain_cut
from hrp_lab.theory.problem import orthonormal_columns
from hrp_lab.theory.rows import Pairs, Row, exact
from hrp_lab.theory.weighted_problem import WeightedFactorization, weight_of_condition

_NO_DAMPING, _FULL_DAMPING = 1e-13, 1e13
_SCALING = 0.7
_CONDITIONS = (1.0, 30.0, 1000.0)
_SHAPES = ((9, 14, 6, 2), (16, 10, 8, 3), (12, 12, 12, 5))


@dataclass(frozen=True, eq=False)
class _Case:
    """Holds an update of rank R that is to be cut to ``rank``, and the problem that weighs it."""

    problem: WeightedFactorization
    A: Float[np.ndarray, "n R"]
    B: Float[np.ndarray, "m R"]
    rank: int

    @property
    def update(self) -> Preheated:
        """Return the SVD of the update."""
        return spectrum_of(self.A, _SCALING * self.B)

    @property
    def delta_weight(self) -> Float[np.ndarray, "m n"]:
        """Return the matrix itself, scaling * B A^T."""
        return _SCALING * self.B @ self.A.T

    def damped(self, damping: float) -> WeightedFactorization:
        """Return the problem whose X and Y are damped in full space."""
        X, Y, update = self.problem.X, self.problem.Y, self.update
        return WeightedFactorization(
            self.problem.M,
            predict_truncation.damped(X, update.Vh.T, update.S, damping),
            predict_truncation.damped(Y, update.U, update.S, damping),
        )

    def cut_factors(
        self,
        rank: int,
        damping: float = DAMPING,
        gradient_factor: float = 1.0,
        basis: np.ndarray | None = None,
    ) -> tuple[Float[np.ndarray, "m rank"], Float[np.ndarray, "rank n"]]:
        """Cut by the moments of z = A^T x and of dL/dz, the factors being A W^-T and B W."""
        W = np.eye(self.A.shape[-1]) if basis is None else basis
        A, B = np.linalg.solve(W, self.A.T).T, self.B @ W
        C = A.T @ self.problem.X @ A
        G = (gradient_factor * _SCALING) ** 2 * B.T @ self.problem.Y @ B
        update = spectrum_of(A, _SCALING * B)
        metrics = metrics_of_moments(update, A, B, C, G, _SCALING)
        return metric_cut(update, *metrics, rank, damping)

    def cut(self, rank: int, damping: float = DAMPING, **changes: Any) -> Float[np.ndarray, "m n"]:
        """Return the product of `cut_factors`."""
        left, right = self.cut_factors(rank, damping, **changes)
        return left @ right


def _cases(rng: np.random.Generator) -> Iterator[_Case]:
    for m, n, preheat_rank, rank in _SHAPES:
        for condition in _CONDITIONS:
            problem = WeightedFactorization(
                rng.standard_normal((m, n)),
                weight_of_condition(rng, n, condition),
                weight_of_condition(rng, m, condition),
            )
            A, B = (rng.standard_normal((size, preheat_rank)) for size in (n, m))
            yield _Case(problem, A / np.sqrt(n), B / np.sqrt(m), rank)


def truncation(_draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Check P11: the R x R cut is the full-space optimum, whatever the basis and the units."""
    cases = list(_cases(rng))
    best, least, costs, nested, units, bases, infinite = [Pairs() for _ in range(7)]
    for case in cases:
        D, rank, damped = case.delta_weight, case.rank, case.damped(DAMPING)
        expected = predict_truncation.full_space_cut(D, damped.X, damped.Y, rank)
        best.append((expected, case.cut(rank)))
        units += [(expected, case.cut(rank, gradient_factor=factor)) for factor in (1e-6, 1e6)]
        bases.append((expected, case.cut(rank, basis=_change_of_basis(rng, case))))
        nested += _nested(case, damped)
        plain = plain_cut(case.update, rank)
        infinite.append((plain, case.cut(rank, _FULL_DAMPING)))
        for problem, damping in ((case.problem, _NO_DAMPING), (damped, DAMPING)):
            cost = problem.distance(D, case.cut(rank, damping))
            lowest = predict_truncation.least_cost(D, problem.X, problem.Y, rank)
            least.append((np.array(lowest), cost))
            costs.append((problem.distance(D, plain), cost))
    yield exact("P11", "the R x R cut is the best of all matrices of rank r", best)
    yield exact("P11", "its cost is the full-space minimum, damped and not", least)
    yield exact("P11", "it never costs more than the plain SVD, damped and not", costs, "<=")
    yield exact("P11", "the first r triples of the largest cut are the cut to r", nested)
    yield exact("P11", "a factor of 1e-6 or 1e6 of the gradient changes nothing", units)
    yield exact("P11", "nor does the basis of the temporary factors", bases)
    yield exact("P11", "damping to infinity is the plain SVD", infinite)
    yield exact("P11", "the loss after the cut is the preheated loss and the cost", _added(cases))


def _change_of_basis(rng: np.random.Generator, case: _Case) -> np.ndarray:
    """Draw an invertible R x R matrix of condition 100 that is not symmetric."""
    R = case.A.shape[-1]
    left, right = orthonormal_columns(rng, R, R), orthonormal_columns(rng, R, R)
    return left * np.geomspace(10.0, 0.1, R) @ right


def _nested(case: _Case, damped: WeightedFactorization) -> Pairs:
    """Pair every full-space optimum with the first r columns and rows of one large cut."""
    largest = case.update.S.size - 1
    left, right = case.cut_factors(largest)
    return [
        (
            predict_truncation.full_space_cut(case.delta_weight, damped.X, damped.Y, rank),
            left[:, :rank] @ right[:rank],
        )
        for rank in range(1, largest + 1)
    ]


def _added(cases: list[_Case]) -> Pairs:
    """Pair the loss after the cut with loss and least cost, at the end of asymmetric preheating."""
    pairs = []
    for case in cases:
        problem = case.problem
        B = problem.limit_factor(case.A)
        update = spectrum_of(case.A, B)
        left, right = update.U.T @ problem.Y @ update.U, update.Vh @ problem.X @ update.Vh.T
        P, Q = metric_cut(update, left, right, case.rank, _NO_DAMPING)
        cost = predict_truncation.least_cost(B @ case.A.T, problem.X, problem.Y, case.rank)
        pairs.append((np.array(problem.loss(case.A, B) + cost), problem.distance(P @ Q, problem.M)))
    return pairs
