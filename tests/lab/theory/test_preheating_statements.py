"""P4, P5 and what follows from them, by property tests and over coupled draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hrp_lab.theory import preheating_statements as preheated
from hrp_lab.theory.flow import random_start, start_at
from hrp_lab.theory.flow_preheating import (
    preheat_again,
    preheat_flow,
    preheat_to_limit,
    spectrum_of,
)
from hrp_lab.theory.problem import (
    MatrixFactorization,
    flat_target,
    geometric_target,
    orthonormal_columns,
    power_law_target,
)
from hrp_lab.theory.rows import estimate
from hrp_lab.theory.start_statements import asymmetric_factor, limit_loss, random_limit

SIDES = ("A", "B")
OTHER = {"A": "B", "B": "A"}


@st.composite
def preheatings(draw):
    """A target of any shape and spectrum, ranks r <= R, and a random frozen factor."""
    m, n = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    frozen = draw(st.sampled_from(SIDES))
    dimension = n if frozen == "A" else m
    preheat_rank = draw(st.integers(1, dimension))
    rank = draw(st.integers(1, min(preheat_rank, m, n)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    decay = draw(st.sampled_from([1.0, 0.5, 0.1]))
    M = rng.standard_normal((m, n)) * decay ** np.arange(n)
    kept = draw(st.integers(0, n))
    M[:, kept:] = 0  # also targets of low rank, and zero
    columns = rng.standard_normal((dimension, preheat_rank))
    return MatrixFactorization(M), columns, rank, frozen


@settings(max_examples=300, deadline=None)
@given(preheatings())
def test_the_other_direction_never_loses_to_the_frozen_one(case):
    """P5: direction "B" against "A" with A frozen, and the mirror image."""
    problem, columns, rank, frozen = case
    found = preheat_to_limit(problem, columns, frozen)
    same = found.limit_loss(problem, rank, frozen)
    other = found.limit_loss(problem, rank, OTHER[frozen])
    allowed = 1e-10 * max(1.0, problem.energy)
    assert other <= same + allowed
    assert problem.optimum(rank) <= other + allowed


@settings(max_examples=150, deadline=None)
@given(preheatings())
def test_the_librarys_directions_have_the_predicted_losses(case):
    problem, columns, rank, frozen = case
    found = preheat_to_limit(problem, columns, frozen)
    allowed = 1e-9 * max(1.0, problem.energy)
    same = preheated.same_direction_loss(problem, columns, rank, frozen)
    assert abs(found.limit_loss(problem, rank, frozen) - same) <= allowed
    basis = np.linalg.qr(columns)[0]
    product = problem.seen_from(frozen).M @ basis
    gaps = np.diff(np.linalg.svd(product, compute_uv=False))
    if (np.abs(gaps) > 1e-3).all():  # else the leading vectors are not determined by the product
        other = preheated.other_direction_loss(problem, columns, rank, frozen)
        assert abs(found.limit_loss(problem, rank, OTHER[frozen]) - other) <= 1e3 * allowed


@pytest.mark.parametrize("frozen", SIDES)
@pytest.mark.parametrize("seed", range(4))
def test_more_preheat_rank_never_hurts_over_coupled_draws(seed, frozen):
    """P4, for every draw: nested columns, one more at a time."""
    rng = np.random.default_rng(seed)
    problem = MatrixFactorization(rng.standard_normal((7, 9)) * 0.7 ** np.arange(9))
    dimension = problem.seen_from(frozen).n
    nested = orthonormal_columns(rng, dimension, dimension, (50,))
    losses = [
        preheat_to_limit(problem, nested[..., :R], frozen).limit_loss(problem, 2, frozen)
        for R in range(2, dimension + 1)
    ]
    assert (np.diff(losses, axis=0) <= 1e-10).all()
    np.testing.assert_allclose(losses[0], limit_loss(problem, nested[..., :2], frozen), atol=1e-10)
    np.testing.assert_allclose(losses[-1], problem.optimum(2), atol=1e-10)


def mean_losses(problem, preheat_rank, rank, draws=3000, seed=0):
    columns = orthonormal_columns(np.random.default_rng(seed), problem.n, preheat_rank, (draws,))
    return (
        estimate(preheated.same_direction_loss(problem, columns, rank)),
        estimate(preheated.other_direction_loss(problem, columns, rank)),
    )


# Means of 30 draws that were noted before P4 and P6 were derived, so only to their digits.
@pytest.mark.parametrize(
    ("preheat_rank", "loss_A", "loss_B"),
    [(6, 10.4, 5.05), (12, 8.7, 4.17), (24, 5.4, 3.47), (32, 3.28, 3.28)],
)
def test_a_decaying_spectrum_has_the_losses_that_were_noted(preheat_rank, loss_A, loss_B):
    problem = geometric_target(24, 32, ratio=0.8, first=3.0)
    same, other = mean_losses(problem, preheat_rank, rank=3)
    assert same.mean == pytest.approx(loss_A, abs=0.2)
    assert other.mean == pytest.approx(loss_B, abs=0.1)


@pytest.mark.parametrize(("preheat_rank", "loss"), [(6, 5.36), (12, 5.16), (24, 5.00)])
def test_figure_1s_losses_after_preheating_are_those_that_were_noted(preheat_rank, loss):
    exact = preheated.flat_same_direction_mean(12, 32, preheat_rank, 2)
    assert exact == pytest.approx(loss, abs=0.01)
    same, other = mean_losses(flat_target(12, 32, 32), preheat_rank, rank=2)
    assert abs(same.mean - exact) <= 3.5 * same.standard_error + 1e-10
    assert other.mean == pytest.approx(5, abs=1e-10)


def test_a_flat_targets_exact_mean_runs_from_random_to_the_optimum_and_scales():
    problem = flat_target(5, 12, 12, level=2.0)
    exact = [preheated.flat_same_direction_mean(5, 12, R, 2, level=2.0) for R in range(2, 13)]
    assert exact[0] == pytest.approx(random_limit(problem, 2), abs=1e-11)
    assert exact[-1] == pytest.approx(problem.optimum(2), abs=1e-12)
    assert (np.diff(exact) <= 1e-12).all()


@pytest.mark.parametrize("frozen", SIDES)
@pytest.mark.parametrize(
    "problem",
    [
        geometric_target(10, 14, ratio=0.7),
        power_law_target(14, 10, exponent=0.5),
        flat_target(4, 12, 12),
    ],
    ids=["geometric", "power-law", "flat"],
)
def test_the_mean_lies_between_the_floor_and_the_chord(problem, frozen):
    """P8, with equality at both ends of the chord."""
    rank, dimension = 2, problem.seen_from(frozen).n
    rng = np.random.default_rng(0)
    for preheat_rank in range(rank, dimension + 1, 2):
        columns = orthonormal_columns(rng, dimension, preheat_rank, (2000,))
        mean, error = estimate(preheated.same_direction_loss(problem, columns, rank, frozen))
        ceiling = preheated.same_direction_ceiling(problem, preheat_rank, rank, frozen)
        floor = preheated.same_direction_floor(problem, preheat_rank, rank, frozen)
        assert floor - 3.5 * error - 1e-10 <= mean <= ceiling + 3.5 * error + 1e-10
        if preheat_rank in (rank, dimension):
            assert abs(mean - ceiling) <= 3.5 * error + 1e-10


@pytest.mark.parametrize("preheat_rank", [2, 5, 14])
def test_the_chord_guarantees_a_gain_that_falls_with_the_effective_rank(preheat_rank):
    rank, n = 2, 14
    gains = []
    for ratio in (0.3, 0.7, 1.0):
        problem = geometric_target(10, n, ratio=ratio)
        k = problem.effective_rank(rank)
        stated = (preheat_rank - rank) / (n - rank) * rank * (1 / k - 1 / n) * problem.energy / 2
        chord = preheated.same_direction_ceiling(problem, preheat_rank, rank)
        assert random_limit(problem, rank) - chord == pytest.approx(stated, abs=1e-12)
        gains.append(stated / problem.energy)
    assert gains == sorted(gains, reverse=True)


@pytest.mark.parametrize("preheat_rank", [2, 4, 8, 16, 30])
def test_the_range_finder_leaves_no_more_than_its_bound(preheat_rank):
    problem = power_law_target(24, 30, exponent=1.0)
    columns = orthonormal_columns(np.random.default_rng(0), 30, preheat_rank, (1000,))
    found = preheat_to_limit(problem, columns)
    mean, error = estimate(limit_loss(problem, found.U, "B"))
    bound = preheated.range_finder_bound(problem, preheat_rank)
    assert mean <= bound + 3.5 * error
    assert bound <= problem.energy / 2 + 1e-12


def test_the_range_finders_bound_is_halko_martinsson_and_tropps():
    problem = MatrixFactorization(np.diag([3.0, 1.0, 0.1, 0.01]))
    squares = problem.singular_values**2
    by_k = [(1 + k / (4 - k - 1)) * squares[k:].sum() / 2 for k in (0, 1, 2)]
    assert preheated.range_finder_bound(problem, 4) == pytest.approx(min(by_k))


def test_a_range_of_the_targets_rank_is_exact_but_its_leading_directions_are_not():
    """What P5 claims is the range's; the leading r of it are exact only for a flat target."""
    problem = geometric_target(6, 12, ratio=0.7)
    columns = orthonormal_columns(np.random.default_rng(0), 12, 6, (20,))
    found = preheat_to_limit(problem, columns)
    np.testing.assert_allclose(limit_loss(problem, found.U, "B"), 0, atol=1e-12)
    assert (found.limit_loss(problem, 2, "B") > 1.01 * problem.optimum(2)).all()


@pytest.mark.parametrize("frozen", SIDES)
@pytest.mark.parametrize("seed", range(3))
def test_a_second_half_sweep_is_exact_at_the_targets_rank_and_bounded_below_it(seed, frozen):
    """P10."""
    rng = np.random.default_rng(seed)
    problem = MatrixFactorization(rng.standard_normal((8, 8)) * 0.6 ** np.arange(8))
    for preheat_rank in (4, 8):
        columns = orthonormal_columns(rng, 8, preheat_rank, (500,))
        found = preheat_again(problem, preheat_to_limit(problem, columns, frozen), frozen)
        bound = problem.optimum(2) + preheated.range_finder_bound(problem, preheat_rank)
        losses = {side: found.limit_loss(problem, 2, side) for side in SIDES}
        mean, error = estimate(losses[OTHER[frozen]])
        assert mean <= bound + 3.5 * error
        assert (losses[frozen] <= losses[OTHER[frozen]] + 1e-10).all()
        if preheat_rank == 8:
            for loss in losses.values():
                np.testing.assert_allclose(loss, problem.optimum(2), atol=1e-10)


@pytest.mark.parametrize("frozen", SIDES)
@pytest.mark.parametrize("time", [1e-3, 0.5])
def test_orthonormal_columns_find_the_same_directions_at_any_time(time, frozen):
    """P7."""
    rng = np.random.default_rng(0)
    problem = MatrixFactorization(rng.standard_normal((6, 9)))
    columns = orthonormal_columns(rng, problem.seen_from(frozen).n, 4, (3,))
    brief = preheat_flow(
        problem, start_at(problem, columns, frozen), time, OTHER[frozen], tolerance=1e-13
    )
    full = preheat_to_limit(problem, columns, frozen)
    for side in SIDES:
        np.testing.assert_allclose(
            brief.limit_loss(problem, 2, side), full.limit_loss(problem, 2, side), atol=1e-8
        )


@settings(max_examples=200, deadline=None)
@given(preheatings(), st.floats(-3, 1))
def test_the_other_direction_never_loses_however_early_preheating_stops(case, log_time):
    """P5 beyond its limit (docs/theory.md): any frozen columns, any time."""
    problem, columns, rank, frozen = case
    stretched = columns * np.geomspace(1, 30, columns.shape[1])
    time = np.array([10**log_time])
    trained = asymmetric_factor(problem, stretched, time, frozen)[0]
    found = spectrum_of(*((stretched, trained) if frozen == "A" else (trained, stretched)))
    same = found.limit_loss(problem, rank, frozen)
    assert found.limit_loss(problem, rank, OTHER[frozen]) <= same + 1e-10 * max(1, problem.energy)


def test_after_long_classic_preheating_direction_b_can_lose_but_by_little():
    """Why P5 is about asymmetric preheating: near the optimum of the classic flow it breaks."""
    rng, gaps = np.random.default_rng(0), []
    for _ in range(30):
        problem = MatrixFactorization(rng.standard_normal((5, 6)))
        start = random_start(problem, 4, rng, 5, "gaussian")
        found = preheat_flow(problem, start, 2.0)
        losses = [found.limit_loss(problem, 2, side) for side in SIDES]
        gaps.append((losses[1] - losses[0]) / problem.energy)
    gaps = np.concatenate(gaps)
    assert 0 < (gaps > 1e-6).mean() < 0.5
    assert gaps.max() < 0.005
    assert gaps.mean() < 0


def test_the_lab_reads_directions_as_the_library_does():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    found = spectrum_of(A, B)
    np.testing.assert_allclose(found.U * found.S @ found.Vh, B @ A.T, atol=1e-12)
    start = found.start(MatrixFactorization(B @ A.T), 2, "A")
    np.testing.assert_allclose(start.A, found.Vh[:2].T)
    assert not start.B.any()
