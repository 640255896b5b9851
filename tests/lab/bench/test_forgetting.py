"""Forgetting: the rise of the base's loss on the standard library's sources."""

from __future__ import annotations

import copy
import dataclasses
import math
import sysconfig
from pathlib import Path

import pytest
import torch

from helpers.synthetic import full_record
from helpers.tiny_bench import BASE
from hrp.demo import BASE as DEMO
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.bench.context import Bench, Places
from hrp_lab.bench.protocol import experiment_from, plan
from hrp_lab.bench.run import execute
from hrp_lab.bench.sweeps import FORGETTING, minimised
from hrp_lab.bench.tasks import TaskRequest, load_task
from hrp_lab.bench.tasks.answers import load_tokenizer
from hrp_lab.bench.tasks.forgetting import SAMPLE_MODULES, sample
from hrp_lab.report import plots
from hrp_lab.report.arm_table import arms_table


def task(**options):
    small = {"train_rows": 8, "test_rows": 4}
    return load_task(TaskRequest("wordproblems", "hrp-demo", None, small | options))


def test_the_sample_is_the_same_each_time_and_each_passage_of_another_module():
    passages = sample(len(SAMPLE_MODULES))
    assert passages == sample(len(SAMPLE_MODULES))
    assert len(set(passages)) == len(SAMPLE_MODULES) == len(set(SAMPLE_MODULES))
    assert min(map(len, passages)) > 100
    assert sample(1)[0] in (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()


@pytest.mark.parametrize("rows", [-1, len(SAMPLE_MODULES) + 1])
def test_more_passages_than_modules_are_refused_by_name(rows):
    with pytest.raises(ValueError, match="`forgetting_rows` must be in"):
        task(forgetting_rows=rows)


def test_the_base_forgets_nothing_and_another_model_the_rise_of_its_loss():
    measured = task(forgetting_rows=3)
    model = measured.load_model(torch.float32).eval()
    assert measured.evaluate(model)[FORGETTING] == 0
    tokenizer = load_tokenizer(str(DEMO))
    total, tokens = 0.0, 0
    for text in sample(3):
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=256)["input_ids"]])
        with torch.no_grad():
            total += (len(ids[0]) - 1) * model(ids, labels=ids).loss.item()
        tokens += len(ids[0]) - 1
    knows_nothing = copy.deepcopy(model)
    torch.nn.init.zeros_(knows_nothing.lm_head.weight)
    rise = math.log(model.config.vocab_size) - total / tokens
    assert measured.evaluate(knows_nothing)[FORGETTING] == pytest.approx(rise, abs=1e-4)
    assert measured.evaluate(model)[FORGETTING] == 0


def test_each_precision_is_compared_with_a_base_of_its_own():
    measured = task(forgetting_rows=2)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert measured.evaluate(measured.load_model(dtype))[FORGETTING] == 0


def test_it_is_off_by_default_and_then_no_run_has_another_id():
    assert FORGETTING not in task().evaluate(task().load_model(torch.float32))
    named = {"name": "wordproblems", "options": {"train_rows": 8}}
    asked = {"name": "wordproblems", "options": {"train_rows": 8, "forgetting_rows": 2}}
    (plain,), (other,) = (plan(experiment_from(BASE | {"tasks": [t]}), {}) for t in (named, asked))
    assert "forgetting_rows" not in plain.config["task"]
    assert plain.run_id != other.run_id


@pytest.mark.parametrize("arm", ["lora", "hrp-ab", "full", "pissa"])
def test_a_run_that_asks_for_it_has_it_in_its_record(tmp_path, arm):
    options = {"train_rows": 16, "test_rows": 4, "forgetting_rows": 2}
    changes = {
        "model": "hrp-demo", "arms": [arm], "steps": 3, "batch_size": 4,
        "tasks": [{"name": "wordproblems", "options": options}],
    }  # fmt: skip
    (run,) = plan(experiment_from(BASE | changes), {})
    record = execute(Bench(Places(records=tmp_path / "r", cache=tmp_path / "c")), run)
    assert record.status == "ok", record.reason
    assert record.metrics[FORGETTING] != 0
    assert abs(record.metrics[FORGETTING]) < 5


def forgetful():
    return [
        full_record(arm, seed, 1e-3, 450, 0, loss + 0.01 * seed, forgets=forgets)
        for arm, loss, forgets in (("lora", 1.44, 0.2), ("hrp-ab", 1.42, 0.3), ("full", 1.3, 0.9))
        for seed in range(3)
    ]


def with_forgetting(records):
    return [
        dataclasses.replace(
            record,
            run=dataclasses.replace(
                record.run,
                config={k: v for k, v in record.run.config.items() if k != "forgets"},
            ),
            metrics=dict(record.metrics)
            | {FORGETTING: record.run.config["forgets"] + 0.01 * record.run.seed},
        )
        for record in records
    ]


def test_the_trade_off_shows_gain_over_the_control_against_forgetting():
    analysis = analyse(views(with_forgetting(forgetful()))[0])
    (axes,) = plots.trade_off(analysis).axes
    points = {
        container.get_label(): tuple(container.lines[0].get_xydata()[0])
        for container in axes.containers
    }
    assert points["lora"] == pytest.approx((0.21, 0))
    assert points["hrp-ab"] == pytest.approx((0.31, 0.02))
    assert points["full"] == pytest.approx((0.91, 0.14))
    assert any("forgetting" in name for name in arms_table(analysis).header)
    assert minimised(FORGETTING)


def test_without_the_metric_there_is_no_trade_off():
    assert plots.trade_off(analyse(views(forgetful())[0])) is None
