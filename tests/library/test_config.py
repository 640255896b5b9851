"""HRPConfig refuses what cannot work, and survives JSON."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from hrp import HRPConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("preheat_rank", 0, "`preheat_rank` must be an integer >= 1, got 0"),
        ("preheat_rank", 2.5, "`preheat_rank` must be an integer >= 1, got 2.5"),
        ("preheat_rank", True, "`preheat_rank` must be an integer >= 1, got True"),
        ("preheat_steps", 0, "`preheat_steps` must be an integer >= 1, got 0"),
        ("preheat_steps", -3, "`preheat_steps` must be an integer >= 1, got -3"),
        ("preheat_steps", 0.0, "or a share of fine-tuning's steps between 0 and 1"),
        ("preheat_steps", 1.0, "`preheat_steps` must be an integer >= 1, got 1.0"),
        ("preheat_steps", float("nan"), "`preheat_steps` must be an integer >= 1, got nan"),
        ("direction", "C", "`direction` must be one of 'A', 'B', 'AB', got 'C'"),
        ("train_factors", "AB", "`train_factors` must be one of 'both', 'A', 'B', got 'AB'"),
        ("scale", 0, "`scale` must be finite and > 0, got 0"),
        ("scale", float("nan"), "`scale` must be finite and > 0, got nan"),
        ("learning_rate", -1e-3, "`learning_rate` must be finite and > 0, got -0.001"),
        ("learning_rate", "fast", "`learning_rate` must be a number > 0, got 'fast'"),
        ("seed", -1, "`seed` must be an integer >= 0, got -1"),
        ("seed", 2**32, "`seed` must be an integer <= 4294967295, got 4294967296"),
    ],
)
def test_config_refuses_with_the_range_and_the_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        HRPConfig(**{field: value})


def test_scale_has_no_meaning_with_direction_ab():
    with pytest.raises(ValueError, match="`scale` must be 1 with `direction` 'AB'"):
        HRPConfig(direction="AB", scale=2.0)


def test_an_automatic_length_must_have_time_for_two_looks():
    with pytest.raises(ValueError, match=r"`max_preheat_steps` must be at least two windows.*10"):
        HRPConfig(preheat_steps="auto", max_preheat_steps=10, subspace_window=10)


@pytest.mark.parametrize(
    ("given", "steps"), [(0.25, 25), (None, 20), (0.001, 1), (7, 7), ("auto", "auto")]
)
def test_a_share_becomes_a_number_of_steps_of_the_run(given, steps):
    assert HRPConfig(preheat_steps=given).of_run(100).preheat_steps == steps


@pytest.mark.parametrize("share", [None, 0.2])
def test_a_share_of_no_run_has_no_number_of_steps(share):
    with pytest.raises(ValueError, match=r"must be a number of steps or 'auto' here, got .*of_run"):
        _ = HRPConfig(preheat_steps=share).step_limit


def test_json_round_trip():
    config = HRPConfig(64, 20, "B", 0.5, "A", 1e-3, 7)
    assert HRPConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"rank": 8}', "unknown field `rank`"), ("[1]", "JSON object, got list")],
)
def test_foreign_json_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        HRPConfig.from_json(text)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HRPConfig().seed = 3


def test_config_imports_no_torch():
    script = "import sys, hrp.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(("steps", "warming"), [(1, 0), (3, 0), (4, 1), (100, 30)])
def test_a_preheating_too_short_to_warm_up_wastes_no_step_on_it(steps, warming):
    assert HRPConfig(preheat_steps=steps).warmup_steps == warming
