"""The records of `experiments/gsm8k_core.py` make a report like those of `hrp bench`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hrp.bench.record import RecordError
from hrp.bench.views import analyse, views
from hrp.cli import report
from hrp.report.costs import cost_table
from hrp.report.flat_records import is_flat, load_flat
from hrp.report.tables import DASH

ROOT = Path(__file__).parents[2]
CORE = ROOT / "experiments/results/gsm8k-core"


def test_the_records_in_the_repository_are_read_with_their_values():
    raw = json.loads((CORE / "hrp-ab-lr0.004-seed0.json").read_text())
    records = load_flat(CORE)
    assert len(records) == len(list(CORE.glob("*.json")))
    (one,) = [
        r
        for r in records
        if (r.arm, r.run.learning_rate, r.run.seed) == (raw["arm"], raw["learning_rate"], 0)
    ]
    assert one.metrics == {"test_loss": raw["test_loss"]}
    assert one.costs.charged_steps == one.costs.preheat_steps == 100
    assert one.costs.total_steps == raw["total_steps"]
    assert one.losses[-1] == tuple(raw["train_losses"][-1])
    assert (one.device, one.command) == (raw["device"], raw["command"])


def test_a_run_that_diverged_is_a_failure_and_takes_part_in_nothing():
    diverged = [
        path for path in CORE.glob("*.json") if json.loads(path.read_text())["status"] == "diverged"
    ]
    failed = [record for record in load_flat(CORE) if record.status == "failed"]
    assert len(failed) == len(diverged) > 0
    (view,) = views(load_flat(CORE))
    assert view.failed == tuple(failed)


def test_costs_that_were_not_measured_are_no_zeros():
    (view,) = views(load_flat(CORE))
    table = cost_table(analyse(view))
    assert {row[0]: row[1:4] for row in table.rows}["hrp-ab"] == ("100", "350", "100")
    assert {cell for row in table.rows for cell in row[4:]} == {DASH}


def test_the_documented_command_makes_the_page(tmp_path, capsys):
    assert "hrp report experiments/results/gsm8k-core " in report.EPILOG
    assert "hrp report experiments/results/gsm8k-core " in (ROOT / "docs/commands.md").read_text()
    out = tmp_path / "report.html"
    assert report.main([str(CORE), "--out", str(out)]) == 0
    assert "(60 records, 0 spectra)" in capsys.readouterr().out
    text = re.sub(r"\s+", " ", out.read_text())
    assert "hrp-ab, hrp-b: significantly better than lora." in text
    assert "hrp-a: no significant difference to lora." in text


def test_a_file_that_is_unlike_its_neighbours_is_named(tmp_path):
    (tmp_path / "a.json").write_text((CORE / "lora-lr0.004-seed0.json").read_text())
    (tmp_path / "b.json").write_text('{"arm": "lora"}')
    assert is_flat(tmp_path)
    with pytest.raises(RecordError, match=r"b\.json' is not a record like its neighbours"):
        load_flat(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]", '{"schema": "hrp-record"}'])
def test_other_folders_are_left_to_the_bench_s_reader(tmp_path, content):
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    assert not is_flat(tmp_path)
