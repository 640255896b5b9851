"""Matrix factorisation with weights, and the best cut in their metric, against references."""

from __future__ import annotations

import numpy as np
import pytest

from hrp_lab.theory.cut_statements import (
    SCALING,
    cut_by_moments,
    damped,
    full_space_cut,
    least_cost,
)
from hrp_lab.theory.flow import gradient_flow, random_start
from hrp_lab.theory.flow_preheating import spectrum_of
from hrp_lab.theory.problem import (
    MatrixFactorization,
    WeightedFactorization,
    weight_of_condition,
)


def weighted(seed: int = 0, m: int = 5, n: int = 7, condition: float = 50.0):
    rng = np.random.default_rng(seed)
    X, Y = (weight_of_condition(rng, size, condition) for size in (n, m))
    return WeightedFactorization(rng.standard_normal((m, n)), X, Y), rng


def test_without_weights_it_is_the_plain_problem():
    problem, rng = weighted(condition=1.0)
    plain = MatrixFactorization(problem.M)
    A, B = rng.standard_normal((3, 7, 2)), rng.standard_normal((3, 5, 2))
    np.testing.assert_allclose(problem.loss(A, B), plain.loss(A, B))
    for gradient, expected in zip(problem.gradients(A, B), plain.gradients(A, B), strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-12)


def test_the_loss_is_the_mean_squared_error_over_inputs_of_that_second_moment():
    problem, rng = weighted()
    inputs = np.linalg.cholesky(problem.X) @ rng.standard_normal((7, 200_000))
    A, B = rng.standard_normal((7, 2)), rng.standard_normal((5, 2))
    errors = (B @ A.T - problem.M) @ inputs
    sampled = (errors * (problem.Y @ errors)).sum(0).mean() / 2
    assert problem.loss(A, B) == pytest.approx(sampled, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_those_of_finite_differences(seed):
    problem, rng = weighted(seed)
    factors = [rng.standard_normal((size, 2)) for size in (7, 5)]
    for place, gradient in enumerate(problem.gradients(*factors)):
        step = 1e-6 * rng.standard_normal(gradient.shape)
        ends = [
            problem.loss(*(f + sign * step if i == place else f for i, f in enumerate(factors)))
            for sign in (1, -1)
        ]
        assert (ends[0] - ends[1]) / 2 == pytest.approx((gradient * step).sum(), rel=1e-6)


def test_training_b_alone_ends_at_the_limit_factor_whatever_the_output_weights():
    problem, rng = weighted(condition=5.0)
    start = random_start(problem, 3, rng, 2)
    run = gradient_flow(problem, start, np.array([400.0]), "B", 1e-12)
    np.testing.assert_allclose(run.factors_at(0)[1], problem.limit_factor(start.A), atol=1e-8)
    gradient = problem.gradients(start.A, problem.limit_factor(start.A))[1]
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4])
def test_a_weight_has_its_condition_number_and_trace(condition):
    values = np.linalg.eigvalsh(weight_of_condition(np.random.default_rng(0), 6, condition))
    assert values[-1] / values[0] == pytest.approx(condition)
    assert values.sum() == pytest.approx(6)


@pytest.mark.parametrize("seed", range(3))
def test_the_full_space_cut_has_the_least_cost_and_no_nearby_matrix_less(seed):
    problem, rng = weighted(seed)
    D = rng.standard_normal((5, 7))
    cut = full_space_cut(D, problem.X, problem.Y, 2)
    least = least_cost(D, problem.X, problem.Y, 2)
    assert np.linalg.matrix_rank(cut) == 2
    assert problem.cost(cut - D) == pytest.approx(least)
    U, S, Vh = np.linalg.svd(cut)
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            left = U[:, :2] * S[:2] + size * rng.standard_normal((5, 2))
            right = Vh[:2] + size * rng.standard_normal((2, 7))
            assert problem.cost(left @ right - D) >= least


def test_damping_adds_a_share_of_the_mean_taken_with_the_singular_values():
    metric, directions = np.diag([1.0, 4.0, 100.0]), np.eye(3)[:, :2]
    added = damped(metric, directions, np.array([3.0, 1.0]), 0.5) - metric
    np.testing.assert_allclose(added, 0.5 * (3 * 1 + 1 * 4) / 4 * np.eye(3))


def test_moments_in_the_basis_of_the_factors_cut_as_the_metrics_of_u_and_vh():
    problem, rng = weighted(m=8, n=9)
    A, B = rng.standard_normal((9, 4)), rng.standard_normal((8, 4))
    update = spectrum_of(A, SCALING * B)
    left, right = update.U.T @ problem.Y @ update.U, update.Vh @ problem.X @ update.Vh.T
    by_moments = cut_by_moments(A, B, problem.X, problem.Y, 2)
    expected = np.matmul(*update.metric_cut(left, right, 2))
    np.testing.assert_allclose(np.matmul(*by_moments), expected, atol=1e-10)


def test_a_batch_of_draws_is_cut_as_its_members_are():
    problem, rng = weighted(m=8, n=9)
    update = spectrum_of(rng.standard_normal((3, 9, 4)), rng.standard_normal((3, 8, 4)))
    left = update.U.swapaxes(-1, -2) @ problem.Y @ update.U
    right = update.Vh @ problem.X @ update.Vh.swapaxes(-1, -2)
    together = np.matmul(*update.metric_cut(left, right, 2))
    for draw in range(3):
        single = type(update)(update.U[draw], update.S[draw], update.Vh[draw])
        expected = np.matmul(*single.metric_cut(left[draw], right[draw], 2))
        np.testing.assert_allclose(together[draw], expected, atol=1e-10)
        np.testing.assert_allclose(update.plain_cut(2)[draw], single.plain_cut(2), atol=1e-10)
