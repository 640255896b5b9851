"""Records of arms that have changed their meaning: marked, not mixed, still planned for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from helpers.tiny_bench import BASE, TinyBench, spec
from hrp_lab.bench import starts
from hrp_lab.bench.arms import ARMS
from hrp_lab.bench.comparisons import analyse, shown_arm, superseded, views
from hrp_lab.bench.context import Setup
from hrp_lab.bench.protocol import experiment_from, load_experiment, plan
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.record_store import find_records
from hrp_lab.report.sections import sentences

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
OLD = {"truncation": None, "statistics_steps": None, "warmup_share": None, "keep": None}
WITH_RECORDS = sorted(
    path.stem
    for path in (EXPERIMENTS / "results").glob("*.jsonl")
    if (EXPERIMENTS / f"{path.stem}.yaml").is_file()
)


def recorded(run: RunSpec, loss: float = 1.0) -> Record:
    return Record(run, "ok", metrics={"eval_loss": loss})


def planned(**hrp) -> list[RunSpec]:
    arms = ["lora", "hrp-ab", "dora-hrp-ab"]
    return plan(experiment_from(BASE | {"arms": arms, "seeds": [0, 1], "hrp": hrp}), {})


def test_a_record_whose_section_hrp_has_no_truncation_is_superseded_and_says_what_was_run():
    old, new = map(recorded, planned(**OLD)), map(recorded, planned())
    assert {shown_arm(record) for record in old} == {
        "lora", "hrp-ab (plain cut)", "dora-hrp-ab (reset)",
    }  # fmt: skip
    assert {shown_arm(record) for record in new} == {"lora", "hrp-ab", "dora-hrp-ab"}


def test_old_and_new_records_of_one_experiment_are_two_arms():
    runs = {run.run_id: run for run in [*planned(**OLD), *planned()]}
    records = [recorded(run, 1 + 0.1 * run.seed) for run in runs.values()]
    (view,) = views(records)
    analysis = analyse(view)
    labels = {"lora", "hrp-ab", "hrp-ab (plain cut)", "dora-hrp-ab", "dora-hrp-ab (reset)"}
    assert set(analysis.best) == labels
    for label in labels:
        assert len({superseded(record) for record in analysis.records_of(label)}) == 1
    said = [line for line in sentences(analysis) if "superseded" in line]
    assert len(said) == 1
    assert "hrp-ab (plain cut), dora-hrp-ab (reset)" in said[0]


def test_marking_touches_no_number():
    record = recorded(planned(**OLD)[1])
    before = record.to_json()
    shown_arm(record)
    assert record.to_json() == before


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_an_experiment_plans_every_run_that_it_has_a_record_of(name):
    experiment = load_experiment(EXPERIMENTS / f"{name}.yaml")
    records = find_records(EXPERIMENTS / "results" / name)
    runs = {run.run_id for run in plan(experiment, records)}
    assert set(records) <= runs
    if not name.startswith("kept-"):  # those ran out of time
        assert runs == set(records)


@pytest.mark.parametrize("arm", ["hrp-ab", "hrp-b", "dora-hrp-ab"])
def test_an_arm_of_old_settings_does_what_it_did(arm, monkeypatch):
    made = []

    class OnlySections:
        def __init__(self, section):
            self.config = section

        def section(self, _):
            return dict(self.config)

    monkeypatch.setattr(
        "hrp_lab.bench.starts.preheated",
        lambda setup, use_dora: "as DoRA" if use_dora else "as LoRA",
    )
    monkeypatch.setattr(
        "hrp_lab.bench.arms._directed",
        lambda setup, spectrum, direction, scale, freeze, how, **variant: made.append(
            (spectrum, how)
        ),
    )
    ARMS[arm].start(OnlySections({"scale": 1.0}))
    ARMS[arm].start(OnlySections({"scale": 1.0, "truncation": "loss", "keep": True}))
    today = "as DoRA" if arm == "dora-hrp-ab" else "as LoRA"
    assert made == [
        ("as LoRA", {"truncation": "frobenius", "keep": False}),
        (today, {"truncation": "loss", "keep": True}),
    ]


def test_preheating_of_old_had_no_warm_up_whatever_the_default_is_now(tmp_path):
    bench = TinyBench(tmp_path)
    small = {"preheat_rank": 4, "preheat_steps": 2}
    settings = [
        starts._preheating(Setup(bench, spec("hrp-ab", hrp=small | changes)))["warmup_share"]
        for changes in (OLD, {"warmup_share": 0.5})
    ]
    assert settings == [0.0, 0.5]


def test_records_without_preheating_are_never_superseded():
    record = recorded(RunSpec("e", "lora", "gsm8k", 0, 1e-3, {"model": "m"}))
    assert not superseded(record)
    assert not superseded(dataclasses.replace(record, status="failed", reason="diverged"))
