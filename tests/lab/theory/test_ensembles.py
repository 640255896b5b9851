"""Exact expectations over random subspaces and Gaussian matrices."""

from __future__ import annotations

import numpy as np
import pytest

from hrp_lab.theory import ensembles
from hrp_lab.theory.ensembles import mean_leading_cosines, mean_wishart_decay, pfaffian
from hrp_lab.theory.problem import orthonormal_columns
from hrp_lab.theory.rows import estimate


@pytest.mark.parametrize("size", [2, 4, 8, 14])
def test_a_pfaffian_squared_is_the_determinant(size):
    rng = np.random.default_rng(size)
    for X in rng.standard_normal((6, size, size)):
        skew = X - X.T
        assert pfaffian(skew) ** 2 == pytest.approx(np.linalg.det(skew), rel=1e-10)


def test_a_pfaffian_of_four_has_the_right_sign():
    a, b, c, d, e, f = 1.0, -2.0, 30.0, 4.0, 5.0, -6.0
    X = np.array([[0, a, b, c], [-a, 0, d, e], [-b, -d, 0, f], [-c, -e, -f, 0]])
    assert pfaffian(X) == pytest.approx(a * f - b * e + c * d)
    assert pfaffian(np.zeros((4, 4))) == 0


CASES = [(32, 12, 6, 2), (32, 12, 12, 2), (10, 3, 3, 2), (10, 7, 5, 3), (9, 4, 8, 1), (8, 4, 4, 2)]


@pytest.mark.parametrize(("dimension", "fixed", "drawn", "leading"), CASES)
def test_the_mean_of_the_leading_cosines_is_that_of_random_subspaces(
    dimension, fixed, drawn, leading
):
    Q = orthonormal_columns(np.random.default_rng(0), dimension, drawn, (8000,))
    cosines = np.linalg.svd(Q[:, :fixed], compute_uv=False) ** 2
    mean, error = estimate(cosines[:, :leading].sum(-1))
    exact = mean_leading_cosines(dimension, fixed, drawn, leading)
    assert abs(mean - exact) <= 3.5 * error + 1e-10


@pytest.mark.parametrize(("dimension", "fixed", "drawn", "leading"), CASES)
def test_the_quadrature_is_symmetric_and_knows_the_sum_of_all(dimension, fixed, drawn, leading):
    exact = mean_leading_cosines(dimension, fixed, drawn, leading)
    assert mean_leading_cosines(dimension, drawn, fixed, leading) == pytest.approx(exact, abs=1e-11)
    every = mean_leading_cosines(dimension, fixed, drawn, dimension)
    assert every == pytest.approx(fixed * drawn / dimension, abs=1e-11)


def test_one_direction_against_a_subspace_is_a_beta_variable():
    for drawn in (1, 2, 5, 19):
        assert mean_leading_cosines(20, 1, drawn, 1) == pytest.approx(drawn / 20, abs=1e-12)


def test_two_random_planes_of_four_dimensions_have_their_closed_form():
    # With x = sin^2 u, y = sin^2 v the density is sin(u - v) sin(u + v) on 0 < v < u < pi/2.
    assert mean_leading_cosines(4, 2, 2, 1) == pytest.approx(1 / 2 + np.pi**2 / 32, abs=1e-13)


def test_subspaces_that_must_meet_have_cosines_of_one():
    assert mean_leading_cosines(32, 12, 24, 2) == 2
    assert mean_leading_cosines(32, 12, 32, 5) == 5
    assert mean_leading_cosines(6, 6, 3, 5) == 3


def test_hundreds_of_dimensions_are_within_reach():
    assert mean_leading_cosines(300, 20, 8, 8) == pytest.approx(160 / 300, abs=1e-10)


@pytest.mark.parametrize("time", [0.01, 0.3, 2.0])
def test_one_gaussian_column_decays_as_a_chi_square(time):
    for dimension in (1, 4, 31):
        expected = (1 + 2 * time) ** (-dimension / 2)
        assert mean_wishart_decay(dimension, 1, time) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("dimension", "rank"), [(32, 2), (12, 3), (6, 6), (40, 8)])
def test_the_wishart_decay_is_that_of_random_matrices(dimension, rank):
    A = np.random.default_rng(0).standard_normal((8000, dimension, rank))
    eigenvalues = np.linalg.svd(A, compute_uv=False) ** 2
    for time in (0.5 / dimension, 2 / dimension):
        mean, error = estimate(np.exp(-time * eigenvalues).sum(-1))
        assert abs(mean - mean_wishart_decay(dimension, rank, time)) <= 3.5 * error


def test_a_quadrature_that_misses_a_known_sum_refuses_to_answer(monkeypatch):
    monkeypatch.setattr(ensembles, "_TRUSTED", -1.0)
    with pytest.raises(ensembles.QuadratureError, match="misses the mean of all squared cosines"):
        mean_leading_cosines(32, 12, 6, 2)
    with pytest.raises(ensembles.QuadratureError, match="misses the mean trace"):
        mean_wishart_decay(6, 2, 1.0)
