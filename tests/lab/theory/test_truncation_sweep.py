"""The loss right after the cut: what the sweep over condition numbers must show, and its table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from hrp_lab.cli.theory_commands import main
from hrp_lab.theory.truncation_sweep import LOSSES, WEIGHTS, TruncationConfig, truncation_sweep

SMALL = {"m": 8, "n": 10, "preheat_rank": 5, "rank": 2, "draws": 6}
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def result():
    return truncation_sweep(
        TruncationConfig(**SMALL, conditions=(1.0, 1000.0), preheat_times=(0.3, 6.0))
    )


def test_the_metric_wins_after_a_long_preheating_and_is_the_plain_svd_without_weights(result):
    for weights in WEIGHTS:
        _, plain, metric, _ = (result.losses[weights, 1.0, 6.0, name] for name in LOSSES)
        np.testing.assert_allclose(metric, plain, rtol=1e-9)
        before, plain, metric, optimum = (result.losses[weights, 1e3, 6.0, n] for n in LOSSES)
        assert (optimum <= metric * (1 + 1e-9)).all()
        assert (before < metric).all()
        assert metric.mean() < plain.mean()


def test_the_optimum_depends_on_no_time_and_all_losses_are_shares(result):
    for weights in WEIGHTS:
        np.testing.assert_array_equal(
            result.losses[weights, 1e3, 0.3, "optimum"], result.losses[weights, 1e3, 6.0, "optimum"]
        )
    assert all(((losses > 0) & (losses < 1)).all() for losses in result.losses.values())


def test_the_tables_give_every_setting_with_spread_and_wins(result):
    rows, avoided = result.rows(), result.avoided()
    assert len(rows) == 2 * 2 * 2 * 4
    assert len(avoided) == 2 * 2 * 2
    for row in rows:
        assert row["percentile_10"] <= row["mean"] + 1e-12
        assert row["standard_error"] >= 0
    no_weights = [row for row in avoided if row["condition"] == 1]
    assert all(row["wins"] == 0 and abs(row["mean"]) < 1e-6 for row in no_weights)
    last = avoided[-1]
    assert (last["weights"], last["condition"], last["preheat_time"]) == (WEIGHTS[1], 1e3, 6.0)
    assert last["wins"] >= 5
    assert last["mean"] > 3 * last["standard_error"]


def test_a_seed_reproduces_the_sweep():
    settings = SMALL | {"draws": 2, "conditions": (10.0,), "preheat_times": (0.5,)}
    first, same, other = (
        truncation_sweep(TruncationConfig(**settings, seed=seed)).rows() for seed in (1, 1, 2)
    )
    assert first == same
    assert first != other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 6}, "`preheat_rank` must be an integer >= 6, got 5"),
        ({"preheat_rank": 9}, "`preheat_rank` must be an integer <= 8, got 9"),
        ({"draws": 1}, "`draws` must be an integer >= 2, got 1"),
        ({"damping": 0.0}, "`damping` must be finite and > 0, got 0.0"),
        ({"preheat_times": (0.0,)}, "`preheat_times` must be finite numbers above 0, ascending"),
        (
            {"preheat_times": (2.0, 1.0)},
            "`preheat_times` must be finite numbers above 0, ascending",
        ),
        ({"preheat_times": ()}, "`preheat_times` must be finite numbers above 0, ascending"),
        ({"conditions": ()}, "`conditions` must be finite numbers from 1, ascending, got"),
        ({"conditions": (0.5, 2.0)}, "`conditions` must be finite numbers from 1, ascending, got"),
        ({"conditions": (5.0, 2.0)}, "`conditions` must be finite numbers from 1, ascending, got"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TruncationConfig(**SMALL | fields)


def test_the_command_prints_its_table_and_writes_picture_and_record(tmp_path, capsys):
    path = tmp_path / "truncation.json"
    arguments = "truncation --conditions 1 30 --preheat-times 0.5 --draws 2 --preheat-rank 4"
    arguments += f" --rank 2 --out {tmp_path} --record {path}"
    assert main(arguments.split()) == 0
    printed = capsys.readouterr().out
    assert sum(line.startswith("inputs") for line in printed.splitlines()) == 2 * 2
    assert (tmp_path / "theory-truncation.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads(path.read_text())
    assert record["command"] == f"hrp-lab theory {arguments}"
    assert record["settings"]["conditions"] == [1.0, 30.0]
    assert (len(record["table"]), len(record["avoided"])) == (2 * 2 * 4, 2 * 2)


def test_the_documents_table_is_the_recorded_one():
    text = (ROOT / "docs/theory.md").read_text()
    record = json.loads((ROOT / "experiments/results/theory-truncation.json").read_text())
    section = text[text.index("## The cut") :]
    assert f"`{record['command'].split(' --record')[0]}`" in section
    shown = [row for row in record["avoided"] if row["condition"] in (10, 100, 1e4)]
    assert len(shown) == 2 * 3 * 3
    for row in shown:
        share = f"{100 * row['mean']:.1f} +- {100 * row['standard_error']:.1f}"
        start = rf"\| {row['weights']} \| {row['preheat_time']:g} \|.* {re.escape(share)} "
        assert re.search(start, section), row
