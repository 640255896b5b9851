"""Figure 1's numbers, over 200 draws, and the table beside it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hrp_lab.theory.figure1 import ARMS, PANELS, Figure1Config, figure1, times_to


@pytest.fixture(scope="module")
def result():
    return figure1(Figure1Config(draws=200, seed=0))


@pytest.fixture(scope="module")
def rows(result):
    return {(row["panel"], row["start"]): row for row in result.rows()}


def test_every_arm_of_both_panels_is_there(result, rows):
    assert set(rows) == {(panel, arm) for panel in PANELS for arm in ARMS}
    assert result.optimum == 5
    for losses in result.losses.values():
        assert losses.shape == (200, result.times.size)
        np.testing.assert_allclose(losses[:, 0], 6, atol=1e-9)  # each start is a no-op


@pytest.mark.parametrize("arm", ["gaussian", "orthogonal"])
def test_random_asymmetric_starts_end_at_five_and_five_eighths(rows, arm):
    row = rows["asymmetric", arm]
    assert row["predicted"] == 5.625
    assert abs(row["final_loss"] - 5.625) <= 3 * row["standard_error"]
    assert row["reached"] == 0
    assert row["time"] is None


def test_direction_a_ends_at_its_exact_expectation_near_5_36(rows):
    row = rows["asymmetric", "HRP A"]
    assert row["predicted"] == pytest.approx(5.36, abs=0.01)
    assert abs(row["final_loss"] - row["predicted"]) <= 3 * row["standard_error"]


def test_direction_b_and_the_target_end_at_the_optimum(rows):
    for arm in ("HRP B", "target"):
        assert rows["asymmetric", arm]["final_loss"] == pytest.approx(5, abs=1e-7)
        assert rows["asymmetric", arm]["reached"] == 1


@pytest.mark.parametrize("arm", ARMS)
def test_classic_lora_reaches_the_optimum_from_every_start(rows, arm):
    assert rows["classic", arm]["final_loss"] == pytest.approx(5, abs=1e-7)
    assert rows["classic", arm]["reached"] == 1


def test_hrp_is_sooner_than_random_with_its_preheating_charged_too(rows):
    classic = {arm: rows["classic", arm] for arm in ARMS}
    random = min(classic[arm]["time"] for arm in ("gaussian", "orthogonal"))
    assert classic["HRP A"]["time_with_preheating"] < random
    assert classic["HRP B"]["time_with_preheating"] < classic["HRP A"]["time_with_preheating"]
    assert classic["HRP A"]["time_with_preheating"] == classic["HRP A"]["time"] + 1
    assert classic["target"]["time_with_preheating"] == classic["target"]["time"]


def test_the_targets_own_start_takes_its_closed_form_time(rows):
    # P2: (L(0) - L*) e^{-2t} = 0.01 L*, so t = log(1 / 0.05) / 2.
    assert rows["asymmetric", "target"]["time"] == pytest.approx(np.log(20) / 2, abs=1e-3)


def test_time_to_a_loss_is_interpolated_and_infinite_where_it_is_never_reached():
    losses = np.array([[4.0, 2.0, 1.0], [4.0, 3.9, 3.8], [0.5, 0.4, 0.3]])
    assert times_to(1.5, np.array([0.0, 1.0, 3.0]), losses).tolist() == [2.0, np.inf, 0.0]


def test_the_right_panel_does_not_depend_on_the_preheating_time():
    short, long = (
        figure1(Figure1Config(draws=3, seed=1, preheat_time=time)) for time in (0.05, 3.0)
    )
    for arm in ("HRP A", "HRP B"):
        np.testing.assert_allclose(
            short.losses["asymmetric", arm], long.losses["asymmetric", arm], atol=1e-6
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preheat_rank": 1}, "`preheat_rank` must be an integer >= 2, got 1"),
        ({"preheat_rank": 33}, "`preheat_rank` must be an integer <= 32, got 33"),
        ({"draws": 1}, "`draws` must be an integer >= 2, got 1"),
        ({"preheat_time": 0.0}, "`preheat_time` must be finite and > 0, got 0.0"),
        ({"k": 40}, "`k` must be an integer <= 32, got 40"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Figure1Config(**dataclasses.asdict(Figure1Config()) | fields)
