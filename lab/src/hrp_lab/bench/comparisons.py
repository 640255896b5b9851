"""Decide which records of a benchmark are compared with which, and on what basis of cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import CONTROL, Comparison, Pool, Share, compare, gap_closed, shared_pool
from hrp_lab.bench.sweeps import Best, minimised, scores, select

Basis = Literal["equal total steps", "equal fine-tuning steps"]
ORACLES = ("oracle-b", "oracle-a")
_SHORT = {"preheat_rank": "R", "preheat_steps": "K"}
_TASK_WORDS = {
    "gsm8k": "GSM8K",
    "metamath-gsm8k": "MetaMath, judged by GSM8K",
    "wordproblems": "Word problems",
    "function-names": "Names of functions",
    "glue-cola": "CoLA",
    "glue-sst2": "SST-2",
    "glue-mrpc": "MRPC",
    "glue-qnli": "QNLI",
    "glue-mnli": "MNLI",
}
_BASIS_WORDS: dict[Basis, str] = {
    "equal total steps": "{} steps in all",
    "equal fine-tuning steps": "{} steps of fine-tuning, the start on top",
}
_DORA_HRP = "dora-hrp-ab"
# Control and arm must agree in these, or their difference would not be the start's.
_ALIKE = ("model", "dtype", "batch_size", "lora.r")


@dataclass(frozen=True)
class View:
    """Holds records of one experiment and task that had the same number of steps.

    They share base model, dtype, batch size, LoRA's rank and the task's options too.

    Args:
        basis: "equal total steps" counts what the start is charged, "equal fine-tuning steps" does
            not.
        failed: failed runs of the experiment and task, at any number of steps.
        settings: what tells it from other views of the experiment and task, such as "r=4".
    """

    experiment: str
    task: str
    basis: Basis
    steps: int
    records: tuple[Record, ...]
    failed: tuple[Record, ...] = ()
    settings: str = ""

    @property
    def title(self) -> str:
        """Return task, steps, settings and experiment, as a heading."""
        task = _TASK_WORDS.get(self.task, self.task)
        counted = _BASIS_WORDS[self.basis].format(self.steps)
        settings = f", {self.settings}" * bool(self.settings)
        return f"{task}, {counted}{settings} ({self.experiment})"


@dataclass(frozen=True)
class Analysis:
    """Judges a view by one metric: each arm's best rate, and how it compares.

    Args:
        labels: arm by run id; each configuration of an arm counts as an arm.
        best: arms at their best rates, best arm first.
        comparisons: with the control; empty where it has no results.
        pool: behind the comparisons; None where nothing can be tested.
        gaps: share of the gap to ``oracle`` closed, by arm.
    """

    view: View
    metric: str
    labels: Mapping[str, str]
    best: Mapping[str, Best]
    comparisons: Sequence[Comparison]
    oracle: str | None
    pool: Pool | None
    gaps: Mapping[str, Share]
    control: str = CONTROL

    @property
    def minimise(self) -> bool:
        """Return whether less is better."""
        return minimised(self.metric)

    @property
    def sense(self) -> str:
        """Say in words which way the metric is better."""
        return "less is better" if self.minimise else "more is better"

    def records_of(self, arm: str) -> list[Record]:
        """Return the records behind the figures of ``arm``: those at its best rate, by seed."""
        rate = self.best[arm].learning_rate
        rated = [record for record in self.view.records if record.run.learning_rate == rate]
        chosen = [record for record in rated if self.labels[record.run_id] == arm]
        return sorted(chosen, key=lambda record: record.run.seed)

    def values_of(self, arm: str, metric: str) -> list[float]:
        """Return a metric of `records_of` those that have it."""
        return [run.metrics[metric] for run in self.records_of(arm) if metric in run.metrics]


def views(records: Iterable[Record], control: str = CONTROL) -> list[View]:
    """Split records into views by experiment and task, then by the control's step counts.

    Records that differ in model, dtype, batch size, LoRA's rank or the task's options are never in
    one view: a difference between them would not be the start's.

    The view at equal fine-tuning steps is left out where it has nothing that the one at equal
    total steps has not, that is where no arm is charged for its start.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.run.experiment, record.run.task), []).append(record)
    return [
        view
        for key in sorted(groups)
        for settings, group in sorted(_alike(groups[key]).items())
        for view in _views_of(key, settings, group, control)
    ]


def _alike(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Group records by the settings in which the control must be like its rivals, where unlike."""
    configs = [
        {
            name: text
            for name, text in _flattened(record.run.config)
            if name in _ALIKE or name.startswith("task.")
        }
        for record in records
    ]
    names = sorted({name for config in configs for name in config})
    telling = [name for name in names if len({config.get(name) for config in configs}) > 1]
    groups: dict[str, list[Record]] = {}
    for record, settings in zip(records, configs, strict=True):
        text = ", ".join(f"{_last(name)}={settings.get(name)}" for name in telling)
        groups.setdefault(text, []).append(record)
    return groups


def _views_of(
    key: tuple[str, str], settings: str, group: list[Record], control: str
) -> Iterator[View]:
    records = [record for record in group if record.status == "ok"]
    failed = tuple(record for record in group if record.status == "failed")
    total = {record.run_id: math.ceil(record.costs.total_steps) for record in records}
    controls = [record for record in records if record.arm == control]
    totals = {total[r.run_id] for r in controls} or set(total.values())
    tunings = {r.costs.finetune_steps for r in controls}
    for steps in sorted(totals | tunings):
        whole = tuple(r for r in records if steps in totals and total[r.run_id] == steps)
        tuned = tuple(r for r in records if r.costs.finetune_steps == steps)
        if whole:
            yield View(*key, "equal total steps", steps, whole, failed, settings)
        if steps in tunings and {r.run_id for r in tuned} - {r.run_id for r in whole}:
            yield View(*key, "equal fine-tuning steps", steps, tuned, failed, settings)


def superseded(record: Record) -> bool:
    """Return whether the record is of an arm that has changed its meaning since.

    A section ``hrp`` without ``truncation`` was run when preheated updates were cut by the plain
    SVD, nothing that preheating had trained beside the factors was kept, and DoRA was preheated as
    LoRA, with magnitudes as they follow from the start.
    """
    return "truncation" not in record.run.config.get("hrp", {"truncation": "not preheated"})


def shown_arm(record: Record) -> str:
    """Return the arm's name, which says of a superseded record what was run.

    Such an arm is never mixed with the arm of the same name of today: what "hrp-ab (plain cut)"
    did, `hrp-ab-frobenius` with ``keep: false`` does now, and "dora-hrp-ab (reset)" is
    `dora-hrp-ab-reset` with the plain cut.
    """
    if not superseded(record):
        return record.arm
    return f"{record.arm} ({'reset' if record.arm == _DORA_HRP else 'plain cut'})"


def arm_labels(records: Sequence[Record]) -> dict[str, str]:
    """Name each run, by its id, after its arm and the settings that tell configurations apart.

    Two records whose configurations differ in anything are of different arms. Settings are added,
    preheating's rank and steps first, only until they tell all configurations apart.
    """
    labels = told_apart([(shown_arm(record), record.run.config) for record in records])
    return {record.run_id: label for record, label in zip(records, labels, strict=True)}


def told_apart(configurations: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Add to each name the settings that tell its configurations apart, see `arm_labels`."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for name, config in configurations:
        by_name.setdefault(name, []).append(config)
    labels = {name: iter(_labels_of(name, configs)) for name, configs in by_name.items()}
    return [next(labels[name]) for name, _ in configurations]


def _labels_of(arm: str, configs: Sequence[Mapping[str, Any]]) -> list[str]:
    settings = [dict(_flattened(config)) for config in configs]
    configurations = len({tuple(sorted(flat.items())) for flat in settings})
    names = {name for flat in settings for name in flat}
    chosen: list[str] = []
    seen = 1
    for name in sorted(names, key=lambda name: (_last(name) not in _SHORT, name)):
        if seen == configurations:
            break
        apart = len({tuple(flat.get(key) for key in (*chosen, name)) for flat in settings})
        if apart > seen:
            chosen.append(name)
            seen = apart
    shown = [(key, _SHORT.get(_last(key), _last(key))) for key in chosen]
    return [" ".join([arm, *(f"{s}={flat.get(key)}" for key, s in shown)]) for flat in settings]


def _flattened(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            yield f"{prefix}{name}", text


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def setting(record: Record, name: str) -> str | None:
    """Return a run's setting by the last part of its name, wherever ``config`` nests it."""
    return next((v for key, v in _flattened(record.run.config) if _last(key) == name), None)


def main_metric(records: Sequence[Record]) -> str:
    """Choose what to judge by: the config's ``metric``, else "eval_loss", else the first by name.

    Raises ``ValueError`` without any metric.
    """
    names = sorted({name for record in records for name in record.metrics})
    if not names:
        raise ValueError("`records` must have metrics, got none with any")
    asked = {record.run.config.get("metric") for record in records}
    wanted = next((name for name in names if name in asked), None)
    return wanted or ("eval_loss" if "eval_loss" in names else names[0])


def analyse(view: View, metric: str | None = None, control: str = CONTROL) -> Analysis:
    """Judge a view by ``metric`` (`main_metric` by default) against ``control``."""
    metric = metric or main_metric(view.records)
    labels = arm_labels(view.records)
    table = scores(view.records, metric, label=lambda record: labels[record.run_id])
    best = select(table, minimised(metric), _failed_rates(view, labels))
    oracle = next((name for name in ORACLES if name in best), None)
    pool = shared_pool(best, [control])
    return Analysis(
        view,
        metric,
        labels,
        best,
        comparisons=compare(best, control) if control in best else [],
        oracle=oracle,
        pool=pool,
        gaps=gap_closed(pool, oracle, control) if pool and oracle else {},
        control=control,
    )


def _failed_rates(view: View, labels: Mapping[str, str]) -> dict[str, frozenset[float]]:
    """Return by label the rates at which runs of configurations with results failed."""

    def configuration(record: Record) -> str:
        return json.dumps([record.arm, record.run.config], sort_keys=True)

    known = {configuration(record): labels[record.run_id] for record in view.records}
    rates: dict[str, frozenset[float]] = {}
    for record in view.failed:
        if label := known.get(configuration(record)):
            rates[label] = rates.get(label, frozenset()) | {record.run.learning_rate}
    return rates
