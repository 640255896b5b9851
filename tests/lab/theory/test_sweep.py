"""The sweep over preheat rank and steps."""

from __future__ import annotations

import numpy as np
import pytest

from hrp_lab.theory.sweep import Descent, SweepConfig, TargetConfig, sweep

SMALL = {
    "target": TargetConfig("geometric", 8, 10, decay=0.7, first=2.0),
    "rank": 2,
    "preheat_ranks": (2, 5, 10),
    "preheat_steps": (1, 20, 200),
    "draws": 40,
}


def means(result, direction, **where):
    return np.array([row["mean"] for row in result.losses(direction, **where)])


def test_both_directions_lie_between_optimum_and_random_and_b_never_loses_at_first():
    result = sweep(SweepConfig(**SMALL))
    limits = result.limits()
    for direction in ("A", "B"):
        assert (means(result, direction) >= limits["optimum"] - 1e-9).all()
    first = means(result, "A", preheat_steps=1), means(result, "B", preheat_steps=1)
    assert (first[1] <= first[0] + 1e-9).all()
    assert first[0][0] == pytest.approx(limits["random"], rel=0.03)
    assert first[0][-1] == pytest.approx(limits["optimum"], abs=1e-9)
    assert limits["chord"][0] == pytest.approx(limits["random"])


def test_classic_preheating_gains_by_more_steps():
    result = sweep(SweepConfig(**SMALL))
    for direction in ("A", "B"):
        losses = means(result, direction, preheat_rank=2)
        assert losses[2] < losses[1] < losses[0]


def test_asymmetric_preheating_from_orthonormal_columns_does_not():
    result = sweep(SweepConfig(**SMALL, train_factors="B"))
    for direction in ("A", "B"):
        for preheat_rank in SMALL["preheat_ranks"]:
            losses = means(result, direction, preheat_rank=preheat_rank)
            np.testing.assert_allclose(losses, losses[0], atol=1e-8)


def test_a_seed_reproduces_the_sweep_with_noise():
    settings = SMALL | {"optimizer": Descent("sgd", 0.02, noise=0.1)}
    one, same, other = (sweep(SweepConfig(**settings, seed=seed)).rows for seed in (1, 1, 2))
    assert one == same
    assert one != other


@pytest.mark.parametrize(
    ("kind", "decay", "values"),
    [("flat", 2.0, [3, 3, 0]), ("geometric", 0.5, [3, 1.5, 0.75]), ("power-law", 1.0, [3, 1.5, 1])],
)
def test_targets_are_chosen_by_their_spectrum(kind, decay, values):
    problem = TargetConfig(kind, 3, 4, decay, 3.0).problem()
    np.testing.assert_allclose(problem.singular_values, values, atol=1e-12)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preheat_ranks": (1, 4)}, "`preheat_rank` must be an integer >= 2, got 1"),
        ({"preheat_ranks": (2, 11)}, "`preheat_rank` must be an integer <= 10, got 11"),
        ({"preheat_ranks": (4, 2)}, "`preheat_ranks` must be integers from 1, ascending"),
        ({"preheat_steps": ()}, "`preheat_steps` must be integers from 1, ascending"),
        ({"preheat_steps": (0, 3)}, "`preheat_steps` must be integers from 1"),
        ({"draws": 1}, "`draws` must be an integer >= 2, got 1"),
        ({"target": TargetConfig("flat", 8, 10, 2.5)}, "`decay` must be the whole number k"),
        ({"target": TargetConfig("flat", 8, 0, 2.0)}, "`n` must be an integer >= 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SweepConfig(**SMALL | fields)
