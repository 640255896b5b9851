"""The integrator against closed forms, its invariants, and its refusals."""

from __future__ import annotations

import numpy as np
import pytest

from hrp_lab.theory import flow
from hrp_lab.theory.flow import SolverError, Start, gradient_flow, random_start, wise_start
from hrp_lab.theory.problem import MatrixFactorization, geometric_target

TIMES = np.linspace(0, 3, 31)


def random_problem(seed: int, m: int = 5, n: int = 7) -> MatrixFactorization:
    return MatrixFactorization(np.random.default_rng(seed).standard_normal((m, n)) / 2)


@pytest.mark.parametrize("train_factors", ["both", "A", "B"])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_never_rises_along_the_flow(seed, train_factors):
    problem = random_problem(seed)
    rng = np.random.default_rng(seed)
    start = Start(rng.standard_normal((4, 7, 3)), rng.standard_normal((4, 5, 3)), "A")
    losses = gradient_flow(problem, start, TIMES, train_factors).losses
    assert losses.shape == (4, 31)
    assert (np.diff(losses, axis=-1) <= 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_classic_flow_conserves_the_difference_of_the_gram_matrices(seed):
    problem, rng = random_problem(seed), np.random.default_rng(seed)
    start = Start(rng.standard_normal((7, 3)), rng.standard_normal((5, 3)), "A")
    run = gradient_flow(problem, start, TIMES, tolerance=1e-12)
    A, B = run.factors_at(-1)
    np.testing.assert_allclose(
        A.T @ A - B.T @ B, start.A.T @ start.A - start.B.T @ start.B, atol=1e-9
    )


@pytest.mark.parametrize(("train_factors", "frozen"), [("A", "B"), ("B", "A")])
def test_a_frozen_factor_does_not_move(train_factors, frozen):
    problem, rng = random_problem(0), np.random.default_rng(0)
    start = Start(rng.standard_normal((2, 7, 3)), rng.standard_normal((2, 5, 3)), "A")
    run = gradient_flow(problem, start, TIMES, train_factors)
    still = getattr(run, frozen)
    assert np.array_equal(still, np.repeat(still[:, :1], TIMES.size, axis=1))
    assert np.array_equal(still[:, 0], getattr(start, frozen))


def test_the_mirror_image_runs_alike():
    problem = random_problem(1)
    start = random_start(problem, 2, np.random.default_rng(1), 3, "gaussian")
    swapped = Start(start.B, start.A, "B")
    run = gradient_flow(problem, start, TIMES, tolerance=1e-11)
    mirrored = gradient_flow(problem.mirror, swapped, TIMES, tolerance=1e-11)
    np.testing.assert_allclose(run.losses, mirrored.losses, atol=1e-9)


def test_each_draw_of_a_batch_runs_as_it_would_alone():
    problem = random_problem(2)
    start = random_start(problem, 2, np.random.default_rng(2), 20, "gaussian")
    together = gradient_flow(problem, start, TIMES, tolerance=1e-10).losses
    for draw in (0, 7, 19):
        alone = Start(start.A[draw], start.B[draw], "A")
        losses = gradient_flow(problem, alone, TIMES, tolerance=1e-12).losses
        np.testing.assert_allclose(together[draw], losses, atol=1e-8)


def test_a_tighter_tolerance_brings_the_flow_nearer_to_the_closed_form():
    problem = geometric_target(8, 6, first=2.0)
    start = wise_start(problem, 2)
    expected = problem.optimum(2) + np.exp(-2 * TIMES) * problem.held_energy(2) / 2
    errors = [
        np.abs(gradient_flow(problem, start, TIMES, "B", tolerance).losses - expected).max()
        for tolerance in (1e-4, 1e-8, 1e-12)
    ]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-10


def test_times_may_start_late():
    problem = random_problem(0)
    start = random_start(problem, 2, np.random.default_rng(0), 2)
    whole = gradient_flow(problem, start, np.array([0.0, 1.0, 2.0]), tolerance=1e-12).losses
    late = gradient_flow(problem, start, np.array([1.0, 2.0]), tolerance=1e-12).losses
    np.testing.assert_allclose(whole[:, 1:], late, atol=1e-9)


@pytest.mark.parametrize("times", [[-1.0, 1.0], [0.0, 2.0, 1.0], [0.0, 1.0, 1.0]])
def test_times_that_cannot_be_are_refused(times):
    problem = random_problem(0)
    with pytest.raises(ValueError, match="t_eval"):
        gradient_flow(problem, wise_start(problem, 2), np.array(times))


def test_a_target_too_stiff_for_the_solver_is_an_error_not_a_hang(monkeypatch):
    monkeypatch.setattr(flow, "_MOST_EVALUATIONS", 2000)
    problem = MatrixFactorization(1e6 * np.eye(2))
    with pytest.raises(SolverError, match="needs more than 2000 evaluations"):
        gradient_flow(problem, wise_start(problem, 1), np.array([10.0]))


def test_a_tolerance_that_is_not_reached_is_an_error():
    problem = MatrixFactorization(1e155 * np.eye(2))
    start = Start(1e155 * np.ones((2, 1)), np.ones((2, 1)), "A")
    with pytest.raises(SolverError, match="without reaching `tolerance` = 1e-09"):
        gradient_flow(problem, start, np.array([10.0]))
