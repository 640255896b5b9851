"""Targets, loss and gradients, and what bad input is told."""

from __future__ import annotations

import numpy as np
import pytest

from hrp_lab.theory.flow import random_start, wise_start
from hrp_lab.theory.problem import (
    MatrixFactorization,
    flat_target,
    geometric_target,
    orthonormal_columns,
    power_law_target,
    target_of_spectrum,
)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_the_finite_differences_of_the_loss(seed):
    rng = np.random.default_rng(seed)
    problem = MatrixFactorization(rng.standard_normal((4, 6)))
    A, B = rng.standard_normal((2, 6, 3)), rng.standard_normal((2, 4, 3))
    to_A, to_B = rng.standard_normal(A.shape), rng.standard_normal(B.shape)
    grad_A, grad_B = problem.gradients(A, B)
    step = 1e-5
    ahead, behind = (problem.loss(A + h * to_A, B + h * to_B) for h in (step, -step))
    slope = (grad_A * to_A).sum((-1, -2)) + (grad_B * to_B).sum((-1, -2))
    np.testing.assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-7)


def test_the_loss_is_half_the_squared_frobenius_norm_of_the_residual():
    rng = np.random.default_rng(0)
    problem = MatrixFactorization(rng.standard_normal((4, 6)))
    A, B = rng.standard_normal((6, 2)), rng.standard_normal((4, 2))
    assert problem.loss(A, B) == pytest.approx(np.linalg.norm(B @ A.T - problem.M) ** 2 / 2)


def test_the_optimum_is_the_loss_of_the_truncated_svd():
    problem = MatrixFactorization(np.random.default_rng(1).standard_normal((5, 7)))
    U, S, Vh = problem.svd
    best = problem.loss(Vh[:2].T, U[:, :2] * S[:2])
    assert problem.optimum(2) == pytest.approx(float(best), abs=1e-12)


def test_the_mirror_swaps_the_factors():
    rng = np.random.default_rng(2)
    problem = MatrixFactorization(rng.standard_normal((4, 6)))
    A, B = rng.standard_normal((6, 2)), rng.standard_normal((4, 2))
    assert problem.mirror.loss(B, A) == pytest.approx(float(problem.loss(A, B)))
    assert problem.seen_from("B") is problem.mirror
    assert problem.seen_from("A") is problem


def test_figure_1s_target_has_twelve_ones():
    M = flat_target(12, 32, 32).M
    assert np.array_equal(M, np.diag([1.0] * 12 + [0.0] * 20))


def test_decaying_spectra_are_what_they_say():
    np.testing.assert_allclose(
        geometric_target(3, 5, ratio=0.5, first=4.0).singular_values, [4, 2, 1]
    )
    np.testing.assert_allclose(
        power_law_target(5, 3, exponent=2.0, first=9.0).singular_values, [9, 9 / 4, 1]
    )


def test_random_singular_vectors_leave_the_spectrum_alone():
    problem = target_of_spectrum([3.0, 2.0], 5, 4, np.random.default_rng(0))
    np.testing.assert_allclose(problem.singular_values, [3, 2, 0, 0], atol=1e-12)
    assert np.abs(problem.M).min() > 0


def test_the_effective_rank_is_k_for_a_flat_target_and_the_stable_rank_for_rank_one():
    assert flat_target(12, 32, 32).effective_rank(2) == pytest.approx(12)
    problem = geometric_target(24, 32)
    s = problem.singular_values
    assert problem.effective_rank() == pytest.approx((s**2).sum() / s[0] ** 2)


@pytest.mark.parametrize("kind", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("direction", ["A", "B"])
def test_a_random_start_carries_unit_columns_in_one_factor_only(kind, direction):
    problem = geometric_target(20, 30)
    start = random_start(problem, 4, np.random.default_rng(0), 500, kind, direction)
    other = start.B if direction == "A" else start.A
    assert not other.any()
    norms = np.square(start.carrier).sum(-2)
    assert norms.mean() == pytest.approx(1, abs=0.02)
    if kind == "orthogonal":
        gram = start.carrier.swapaxes(-1, -2) @ start.carrier
        np.testing.assert_allclose(gram, np.broadcast_to(np.eye(4), gram.shape), atol=1e-12)


def test_orthonormal_columns_have_no_preferred_direction():
    Q = orthonormal_columns(np.random.default_rng(0), 4, 2, (20_000,))
    np.testing.assert_allclose(Q.mean(0), 0, atol=0.02)
    np.testing.assert_allclose((Q @ Q.swapaxes(1, 2)).mean(0), np.eye(4) / 2, atol=0.02)


def test_the_wise_start_holds_the_leading_singular_vectors():
    problem = MatrixFactorization(np.random.default_rng(0).standard_normal((4, 6)))
    right, left = wise_start(problem, 2, "A", scale=3.0), wise_start(problem, 2, "B")
    assert np.linalg.norm(problem.M @ right.A) == pytest.approx(
        3 * np.linalg.norm(problem.singular_values[:2])
    )
    assert np.linalg.norm(left.B.T @ problem.M) == pytest.approx(
        np.linalg.norm(problem.singular_values[:2])
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: flat_target(5, 4, 6), "`k` must be an integer <= 4, got 5"),
        (lambda: geometric_target(3, 3, ratio=1.5), r"`ratio` must be in \(0, 1\], got 1.5"),
        (lambda: power_law_target(3, 3, exponent=0.0), "`exponent` must be finite and > 0, got 0"),
        (lambda: power_law_target(3, 3, first=0.0), "`first` must be finite and > 0, got 0"),
    ],
)
def test_a_spectrum_out_of_range_is_named_with_its_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
