"""Discrete optimisers: where they follow the flow, and where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from hrp_lab.theory.flow import gradient_flow, random_start, wise_start
from hrp_lab.theory.problem import MatrixFactorization, geometric_target
from hrp_lab.theory.sweep import Descent, descend


@pytest.fixture
def problem() -> MatrixFactorization:
    return geometric_target(8, 10, ratio=0.7, first=2.0)


def test_gradient_descent_follows_the_flow_to_first_order_in_the_step_size(problem):
    start = random_start(problem, 2, np.random.default_rng(0), 3)
    flow = gradient_flow(problem, start, np.array([1.0]), tolerance=1e-12).losses[..., -1]
    errors = [
        np.abs(
            descend(problem, start, Descent("gd", 1 / steps), (steps,)).losses[..., -1] - flow
        ).max()
        for steps in (50, 100, 200)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.15)


def test_a_step_is_the_gradient_times_the_step_size(problem):
    start = random_start(problem, 2, np.random.default_rng(0), 3)
    run = descend(problem, start, Descent("gd", 0.1), (0, 1))
    A, B = run.factors_at(-1)
    grad_A, grad_B = problem.gradients(start.A, start.B)
    np.testing.assert_allclose(A, start.A - 0.1 * grad_A)
    np.testing.assert_allclose(B, start.B - 0.1 * grad_B)


def test_adams_first_step_has_the_step_size_in_every_entry(problem):
    start = random_start(problem, 2, np.random.default_rng(0), 3, "gaussian")
    run = descend(problem, start, Descent("adam", 0.1), (1,), "B")
    A, B = run.factors_at(-1)
    gradient = problem.gradients(start.A, start.B)[1]
    moved = np.abs(gradient) > 1e-6
    np.testing.assert_allclose(np.abs(B[moved]), 0.1, rtol=1e-2)
    assert np.array_equal(A, start.A)


@pytest.mark.parametrize("method", ["gd", "adam"])
def test_classic_lora_reaches_the_optimum(problem, method):
    start = random_start(problem, 2, np.random.default_rng(0), 3)
    run = descend(problem, start, Descent(method, 0.02), (1500,))
    np.testing.assert_allclose(run.losses[..., -1], problem.optimum(2), rtol=1e-3)


def test_noise_keeps_the_wise_start_off_its_optimum_and_more_so_the_larger_it_is(problem):
    start, last = wise_start(problem, 2), tuple(range(300, 400))
    ends = [
        descend(
            problem, start, Descent("sgd", 0.05, noise), last, rng=np.random.default_rng(1)
        ).losses.mean()
        for noise in (0.01, 0.1, 1.0)
    ]
    assert problem.optimum(2) < ends[0] < ends[1] < ends[2]


def test_noise_comes_from_the_given_generator(problem):
    start, settings = wise_start(problem, 2), Descent("sgd", 0.05, noise=0.1)
    one, same, other = (
        descend(problem, start, settings, (1, 20), rng=np.random.default_rng(seed)).losses
        for seed in (1, 1, 2)
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_recorded_steps_are_those_of_the_whole_run(problem):
    start = random_start(problem, 2, np.random.default_rng(0), 3)
    whole = descend(problem, start, Descent("adam", 0.05), tuple(range(31)))
    few = descend(problem, start, Descent("adam", 0.05), (0, 7, 30))
    assert np.array_equal(few.losses, whole.losses[:, [0, 7, 30]])
    for place, step in enumerate((0, 7, 30)):
        for factor, same in zip(few.factors_at(place), whole.factors_at(step), strict=True):
            assert np.array_equal(factor, same)


def test_a_step_size_that_diverges_is_an_error(problem):
    start = random_start(problem, 2, np.random.default_rng(0), 3)
    with pytest.raises(FloatingPointError, match=r"of 'gd' at `step_size` = 5; lower `step_size`"):
        descend(problem, start, Descent("gd", 5.0), (1, 100))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step_size": 0.0}, "`step_size` must be finite and > 0, got "),
        ({"noise": -1.0}, "`noise` must be a finite number of at least 0"),
        ({"noise": 0.1}, "`noise` must be 0 for 'gd'"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Descent(**fields)
