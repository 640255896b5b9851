"""Turn an experiment's YAML file into an ordered list of runs, and widen its grids.

All tasks, arms and seeds come at each arm's first learning rate, then at the second, so that an
interrupted experiment leaves whole comparisons. Put the best-known rates first. With
``screening_seeds``, those alone sweep the grid beyond its first rate, and the other seeds run every
arm's best rate, then the rates beside it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hrp.cli.yaml_files import read_yaml
from hrp.validation import check_choice, check_integer, check_positive, check_type
from hrp_lab.bench.arm_defaults import ARM_DEFAULTS
from hrp_lab.bench.arms import ARMS
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.sweeps import minimised, select, widened
from hrp_lab.bench.tasks import TASKS, check_task

Budget = Literal["equal_total", "equal_compute", "amortised", "equal_finetuning"]
_SECTIONS: dict[str, Any] = dict.fromkeys(ARM_DEFAULTS, dict)
_ARM_KEYS = {"name": str, "learning_rates": list[float], "lora": dict, "budgets": list[str]} | (
    _SECTIONS
)
_TASK_KEYS = {"name": str, "options": dict, "steps": int, "batch_size": int}
_KEYS = {
    "experiment": str,
    "tasks": list[str | dict],
    "model": str,
    "arms": list[str | dict],
    "steps": int,
    "learning_rates": list[float],
    "seeds": list[int],
    "batch_size": int,
    "dtype": str,
    "lora": dict,
    "training": dict,
    "budgets": list[str],
    "widen": int,
    "screening_seeds": int | None,
    "metric": str | None,
} | _SECTIONS
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
_MOST_RUNS = 100_000


@dataclass(frozen=True)
class Experiment:
    """Describes an experiment; the fields are the keys of its YAML file.

    Args:
        experiment: its name, in every record.
        tasks: of `tasks.TASKS`, each a name or a mapping with ``name``, ``options``, and ``steps``
            or ``batch_size`` where they differ from the experiment's.
        model: the base model's name in the records; hub name or path unless one is given apart.
        arms: of `hrp_lab.bench.arms.ARMS`, each a name or a mapping with ``name``, and
            ``learning_rates``, ``lora`` or sections where they differ from the experiment's; a
            list in a section makes one arm a value.
        steps: budget of optimizer steps of each run, see ``budgets``.
        learning_rates: grid of the arms that name none, most promising first.
        seeds: at least three for a verdict.
        batch_size: examples a step.
        dtype: of the frozen base, "float32" or "bfloat16"; adapters are float32.
        lora: settings of PEFT's ``LoraConfig``, shared by all arms.
        training: settings of HF's ``TrainingArguments``, for preheating and fine-tuning alike.
        budgets: "equal_total" takes what an arm's start is charged out of its fine-tuning, step for
            step where it takes steps; "equal_compute" charges every start by its FLOPs;
            "amortised" does so with a fifth of it, as where five fine-tunings share one start;
            "equal_finetuning" takes nothing out. Several may be asked for.
        widen: how often an arm's grid is widened when its best rate sits on the edge.
        screening_seeds: how many of ``seeds``, from the first, sweep the whole grid; None: all. The
            others run its first rate, then the best one and those beside it.
        metric: what to judge by instead of each task's metric.
        sections: settings of kinds of arms, see `hrp_lab.bench.arm_defaults.ARM_DEFAULTS`.
    """

    experiment: str
    tasks: tuple[Mapping[str, Any], ...]
    model: str
    arms: tuple[Mapping[str, Any], ...]
    steps: int
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    dtype: str = "bfloat16"
    lora: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ("equal_total",)
    widen: int = 2
    screening_seeds: int | None = None
    metric: str | None = None
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every name, so that a slip costs no training."""
        if not (isinstance(self.experiment, str) and re.fullmatch(_NAME, self.experiment)):
            raise ValueError(
                "`experiment` must be of letters, digits and ._+-, as it names a folder, got "
                f"{self.experiment!r}"
            )
        for task in self.tasks:
            _check_keys("tasks", task, _TASK_KEYS)
            check_task(task["name"])
        for arm in self.arms:
            _check_keys("arms", arm, _ARM_KEYS)
            check_choice("arms", arm["name"], tuple(ARMS))
        for budget in (*self.budgets, *(b for arm in self.arms for b in arm.get("budgets", ()))):
            check_choice("budgets", budget, get_args(Budget))
        for rate in self.learning_rates:
            check_positive("learning_rates", rate)
        check_integer("steps", self.steps, minimum=1)
        check_integer("batch_size", self.batch_size, minimum=1)
        check_integer("widen", self.widen, minimum=0)
        if self.screening_seeds is not None:
            check_integer("screening_seeds", self.screening_seeds, minimum=1)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        for name in ("tasks", "arms", "seeds", "learning_rates", "budgets"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must not be empty, got {getattr(self, name)!r}")


def load_experiment(path: Path) -> Experiment:
    """Read an experiment; raise ``ValueError`` or ``FileNotFoundError`` that says what is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"the experiment's file '{path}' is missing; give its path")
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"'{path}' must hold a mapping, got {type(settings).__name__}")
    try:
        experiment = experiment_from(settings)
        _check_size(experiment)
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"'{path}': {error}; mend it") from error
    return experiment


def _check_size(experiment: Experiment) -> None:
    """Raise ``ValueError`` for more runs than can be meant, before they are listed."""
    shown = len(experiment.tasks) * len(experiment.arms)
    if shown <= _MOST_RUNS:
        shown = sum(len(line.grid) for line in lines(experiment)) * len(experiment.seeds)
    if shown > _MOST_RUNS:
        raise ValueError(f"an experiment must have at most {_MOST_RUNS} runs, got {shown}")


def experiment_from(settings: Mapping[str, Any]) -> Experiment:
    """Make an experiment of the YAML file's mapping; sections stand beside the other keys."""
    known = {key.name for key in dataclasses.fields(Experiment)} - {"sections"}
    _check_keys("the experiment", settings, _KEYS)
    if missing := sorted({"experiment", "tasks", "model", "arms", "steps", "learning_rates"}
                         - set(settings)):  # fmt: skip
        raise ValueError(f"the experiment lacks {missing}")
    fields = {name: settings[name] for name in known & set(settings)}
    for name in ("tasks", "arms"):
        fields[name] = tuple(map(_named, fields[name]))
    for name in ("learning_rates", "seeds", "budgets"):
        if name in fields:
            fields[name] = tuple(fields[name])
    fields["learning_rates"] = tuple(map(float, fields["learning_rates"]))
    sections = {name: settings[name] for name in ARM_DEFAULTS if name in settings}
    return Experiment(**fields, sections=sections)


def _named(entry: Any) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"name": entry}
    if not isinstance(entry, dict) or "name" not in entry:
        raise ValueError(f"an entry must be a name or a mapping with `name`, got {entry!r}")
    return entry


def _check_keys(where: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a key that is not ``known``, or a value of another type."""
    if unknown := sorted(map(str, set(settings) - set(known))):
        raise ValueError(f"unknown key(s) {unknown} in {where}; known are {sorted(known)}")
    for name, value in settings.items():
        check_type(name, value, known[name], spelled=name == "learning_rates")


@dataclass(frozen=True)
class Line:
    """Holds an arm in a configuration on a task; its runs differ in rate and seed only."""

    task: str
    arm: str
    config: Mapping[str, Any]
    grid: tuple[float, ...]

    def runs(
        self, experiment: Experiment, rate: float, seeds: Sequence[int] | None = None
    ) -> list[RunSpec]:
        """Return a run for each seed, all of them unless told otherwise."""
        return [
            RunSpec(experiment.experiment, self.arm, self.task, seed, rate, self.config)
            for seed in (experiment.seeds if seeds is None else seeds)
        ]


def plan(experiment: Experiment, records: Mapping[str, Record]) -> list[RunSpec]:
    """List all runs in order, done or not: the grids, then what ``records`` (by run id) add.

    Runs are added only when all runs that they depend on have a record, so the same records give
    the same plan whatever was interrupted in between.
    """
    all_lines = lines(experiment)
    seeds = experiment.seeds[: experiment.screening_seeds]
    runs = [
        run
        for index in range(max(len(line.grid) for line in all_lines))
        for line in all_lines
        if index < len(line.grid)
        for run in line.runs(experiment, line.grid[index], seeds if index else None)
    ]
    grids = []
    for line in all_lines:
        grid, wider = _widening(experiment, line, records, seeds)
        grids.append(grid)
        runs += wider
    if len(seeds) < len(experiment.seeds):
        for reach in (0, 1):  # every line's best rate before any line's neighbours
            for line, grid in zip(all_lines, grids, strict=True):
                runs += _around_best(experiment, line, records, grid, reach)
    return list({run.run_id: run for run in runs}.values())


def _widening(
    experiment: Experiment, line: Line, records: Mapping[str, Record], seeds: Sequence[int]
) -> tuple[Sequence[float], list[RunSpec]]:
    """Return the grid that the records widen to, and the runs on what is new in it."""
    grid: Sequence[float] = line.grid
    runs: list[RunSpec] = []
    for _ in range(experiment.widen):
        tried = [run for rate in grid for run in line.runs(experiment, rate, seeds)]
        best = _best_rate(tried, records)
        wider = grid if best is None else widened(grid, best)
        new = sorted(set(wider) - set(grid))
        if not new:
            break
        runs += [run for rate in new for run in line.runs(experiment, rate, seeds)]
        grid = wider
    return grid, runs


def _around_best(
    experiment: Experiment,
    line: Line,
    records: Mapping[str, Record],
    grid: Sequence[float],
    reach: int,
) -> list[RunSpec]:
    """Run all seeds at the best rate and ``reach`` beside it, until the best of those has them.

    Where that best sits on the edge, the grid is widened once more: all seeds may disagree with
    those that screened.
    """
    rates = sorted(grid)
    widenings = experiment.widen - (len(grid) - len(line.grid))
    seeds = experiment.seeds[: experiment.screening_seeds]
    known = [run for rate in rates for run in line.runs(experiment, rate, seeds)]
    added: list[RunSpec] = []
    while (best := _best_rate(known + added, records)) is not None:
        middle = rates.index(best)
        near = rates[max(0, middle - reach) : middle + reach + 1]
        wanted = [run for rate in near for run in line.runs(experiment, rate)]
        new = [run for run in wanted if run not in known and run not in added]
        wider = sorted(set(widened(rates, best)) - set(rates))
        if not new and reach and widenings > 0 and wider:
            widenings -= 1
            rates = sorted([*rates, *wider])
            new = [run for rate in wider for run in line.runs(experiment, rate)]
        if not new:
            break
        added += new
    return added


def _best_rate(runs: Sequence[RunSpec], records: Mapping[str, Record]) -> float | None:
    """Return the rate with the best mean over seeds; None unless all have records, some results."""
    done = [records.get(run.run_id) for run in runs]
    if not done or None in done:
        return None
    metric = str(runs[0].config["metric"])
    scores: dict[float, dict[int, float]] = {}
    for record in done:
        if record and record.status == "ok":
            by_seed = scores.setdefault(record.run.learning_rate, {})
            by_seed[record.run.seed] = record.metrics[metric]
    if not scores:
        return None
    return select({"arm": scores}, minimised(metric))["arm"].learning_rate


def lines(experiment: Experiment) -> list[Line]:
    """List every task, budget, arm and configuration, in the order of the YAML file."""
    return [
        Line(task["name"], arm["name"], config, _grid(experiment, arm))
        for task in experiment.tasks
        for budget in get_args(Budget)
        for arm in experiment.arms
        if budget in _budgets(experiment, arm)
        for config in _configs(experiment, task, arm, budget)
    ]


def _budgets(experiment: Experiment, arm: Mapping[str, Any]) -> Sequence[Budget]:
    """Return the budgets of an arm: its own or the experiment's, the first if it costs nothing."""
    budgets: Sequence[Budget] = arm.get("budgets", experiment.budgets)
    return budgets if ARMS[arm["name"]].charged else experiment.budgets[:1]


def _grid(experiment: Experiment, arm: Mapping[str, Any]) -> tuple[float, ...]:
    rates = tuple(float(rate) for rate in arm.get("learning_rates", experiment.learning_rates))
    return tuple(dict.fromkeys(rates))


def _configs(
    experiment: Experiment, task: Mapping[str, Any], arm: Mapping[str, Any], budget: Budget
) -> Iterator[dict[str, Any]]:
    """Yield ``RunSpec.config`` of an arm: what its runs depend on, and nothing else."""
    kind = ARMS[arm["name"]]
    common = {
        "model": experiment.model,
        "dtype": experiment.dtype,
        "steps": task.get("steps", experiment.steps),
        "batch_size": task.get("batch_size", experiment.batch_size),
        "budget": budget if kind.charged else experiment.budgets[0],
        "metric": experiment.metric or TASKS[task["name"]][1],
        "task": dict(task.get("options", {})),
        "lora": {**experiment.lora, **arm.get("lora", {})},
        "training": dict(experiment.training),
    }
    for sections in itertools.product(*(_section(experiment, arm, name) for name in kind.sections)):
        yield common | dict(zip(kind.sections, sections, strict=True))


def _kinds(name: str) -> dict[str, Any]:
    """Return the types that a section's settings may have: its default's, lists of it, and null."""
    kinds = {}
    for key, value in ARM_DEFAULTS[name].items():
        kind = str if isinstance(value, str) else bool if isinstance(value, bool) else float
        kinds[key] = kind | list[kind] | None  # type: ignore[valid-type]
    return kinds


def _section(experiment: Experiment, arm: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Merge a section's defaults, the experiment's settings and the arm's; spread lists."""
    given = experiment.sections.get(name, {}), arm.get(name, {})
    for settings in given:
        _check_keys(name, settings, _kinds(name))
    merged = {**ARM_DEFAULTS[name], **given[0], **given[1]}
    spread = [value if isinstance(value, list) else [value] for value in merged.values()]
    if (count := math.prod(map(len, spread))) > _MOST_RUNS:
        raise ValueError(f"`{name}` must spread to at most {_MOST_RUNS} arms, got {count}")
    for values in itertools.product(*spread):
        yield {key: value for key, value in zip(merged, values, strict=True) if value is not None}
