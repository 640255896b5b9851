"""Closed forms of random and wise starts: T1, P1 to P3, P9."""

from __future__ import annotations

import numpy as np
import pytest

from hrp_lab.theory import start_statements as closed
from hrp_lab.theory.flow import gradient_flow, random_start, wise_start
from hrp_lab.theory.problem import MatrixFactorization, flat_target, geometric_target
from hrp_lab.theory.rows import estimate

TIMES = np.linspace(0, 4, 21)


def test_figure_1s_random_start_ends_at_five_and_five_eighths():
    problem = flat_target(12, 32, 32)
    assert closed.random_limit(problem, 2) == 5.625
    assert closed.random_limit(problem, 2, "B") == 5.625


def test_a_decaying_spectrum_has_the_random_loss_and_optimum_that_were_noted():
    problem = geometric_target(24, 32, ratio=0.8, first=3.0)
    assert closed.random_limit(problem, 3) == pytest.approx(11.33, abs=0.005)
    assert problem.optimum(3) == pytest.approx(3.28, abs=0.005)


def test_the_mirror_image_of_t1_has_m_in_place_of_n():
    problem = MatrixFactorization(np.random.default_rng(0).standard_normal((5, 9)))
    assert closed.random_limit(problem, 2, "B") == pytest.approx(0.6 * problem.energy / 2)
    assert closed.random_limit(problem, 2, "A") == pytest.approx(7 / 9 * problem.energy / 2)


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("seed", range(3))
def test_random_starts_never_fall_below_t1_in_expectation_and_end_there(seed, kind):
    problem = geometric_target(10, 12)
    start = random_start(problem, 3, np.random.default_rng(seed), 4000, kind)
    paths = closed.asymmetric_loss(problem, start.A, np.array([0.2, 1.0, 200.0]))
    limit = closed.random_limit(problem, 3)
    for path in paths.T:
        mean, error = estimate(path)
        assert mean >= limit - 3.5 * error
    assert abs(mean - limit) <= 3.5 * error


@pytest.mark.parametrize("direction", ["A", "B"])
@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("time", [0.0, 0.3, 2.0])
def test_the_expected_path_is_exact_on_the_way(time, kind, direction):
    problem = geometric_target(10, 12)
    start = random_start(problem, 3, np.random.default_rng(5), 4000, kind, direction)
    path = closed.asymmetric_loss(problem, start.carrier, np.array([time]), direction)[:, 0]
    mean, error = estimate(path)
    expected = closed.random_path(problem, 3, time, kind, direction)
    assert abs(mean - expected) <= 3.5 * error + 1e-10


@pytest.mark.parametrize("direction", ["A", "B"])
@pytest.mark.parametrize("seed", range(3))
def test_p1_is_the_solution_of_the_flow(seed, direction):
    problem = MatrixFactorization(np.random.default_rng(seed).standard_normal((5, 6)))
    start = random_start(problem, 3, np.random.default_rng(seed), 2, "gaussian", direction)
    trained = "B" if direction == "A" else "A"
    run = gradient_flow(problem, start, TIMES, trained, tolerance=1e-12)
    factor = closed.asymmetric_factor(problem, start.carrier, TIMES, direction)
    np.testing.assert_allclose(factor, getattr(run, trained), atol=1e-9)
    losses = closed.asymmetric_loss(problem, start.carrier, TIMES, direction)
    np.testing.assert_allclose(losses, run.losses, atol=1e-9)


def test_p1_holds_for_dependent_columns():
    problem = MatrixFactorization(np.random.default_rng(0).standard_normal((5, 6)))
    column = random_start(problem, 1, np.random.default_rng(0), 2).A
    doubled = np.concatenate([column, column, 0 * column], axis=-1)
    from_factor = [
        problem.loss(doubled, factor)
        for factor in np.moveaxis(closed.asymmetric_factor(problem, doubled, TIMES), 1, 0)
    ]
    losses = closed.asymmetric_loss(problem, doubled, TIMES)
    np.testing.assert_allclose(np.stack(from_factor, -1), losses, atol=1e-12)
    np.testing.assert_allclose(
        closed.limit_loss(problem, doubled), closed.limit_loss(problem, column), atol=1e-12
    )


def test_the_limit_is_the_end_of_the_path():
    problem = MatrixFactorization(np.random.default_rng(0).standard_normal((5, 6)))
    A = random_start(problem, 3, np.random.default_rng(0), 2).A
    late = closed.asymmetric_loss(problem, A, np.array([30.0]))[:, 0]
    np.testing.assert_allclose(closed.limit_loss(problem, A), late, atol=1e-12)


@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("direction", ["A", "B"])
def test_p3s_explicit_pairs_solve_the_flow(direction, scale):
    problem = geometric_target(6, 8, ratio=0.6, first=2.0)
    start = wise_start(problem, 3, direction, scale)
    run = gradient_flow(problem, start, TIMES, tolerance=1e-12)
    factors = (run.A, run.B) if direction == "A" else (run.B, run.A)
    a, b, residual = closed.wise_classic_pairs(problem, 3, TIMES, scale)
    for pair, factor in zip((a, b), factors, strict=True):
        np.testing.assert_allclose(pair, np.linalg.norm(factor, axis=-2), atol=1e-7)
    np.testing.assert_allclose(problem.singular_values[:3] - a * b, residual, atol=1e-12)
    np.testing.assert_allclose(a**2 - b**2, scale**2, rtol=1e-9)
    losses = closed.wise_classic_loss(problem, 3, TIMES, scale)
    np.testing.assert_allclose(losses, run.losses, atol=1e-8)


def test_p3s_residual_keeps_its_relative_accuracy_far_out():
    problem = geometric_target(6, 8, ratio=0.6, first=2.0)
    times = np.array([60.0, 61.0])
    residual = closed.wise_classic_pairs(problem, 3, times)[2]
    rates = np.log(residual[0] / residual[1])
    np.testing.assert_allclose(rates, closed.wise_classic_rates(problem, 3), rtol=1e-10)


def test_a_singular_value_of_zero_stays_where_it_is():
    a, b, residual = closed.wise_classic_pairs(flat_target(1, 3, 3), 2, TIMES)
    assert np.allclose(a[:, 1], 1)
    assert not b[:, 1].any()
    assert not residual[:, 1].any()


def test_the_wise_asymmetric_start_falls_at_the_square_of_its_scale():
    problem = geometric_target(6, 8)
    path = closed.wise_asymmetric_loss(problem, 2, TIMES, scale=0.7) - problem.optimum(2)
    np.testing.assert_allclose(np.diff(np.log(path)), -2 * 0.49 * np.diff(TIMES), rtol=1e-9)
