"""Turn an experiment's YAML file into an ordered list of runs, and widen its grids.

All tasks, arms and seeds come at each arm's first learning rate, then at the second, so that an
interrupted experiment leaves whole comparisons. Put the best-known rates first. With
``screening_seeds``, those alone sweep the grid beyond its first rate, and the other seeds run every
arm's best rate, then the rates beside it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from hrp.cli.yaml_files import read_yaml
from hrp.validation import check_choice, check_integer, check_positive, check_type
from hrp_lab.bench.arm_defaults import ARM_DEFAULTS
from hrp_lab.bench.arms import ARMS
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.sweeps import minimised, scores, select, widened
from hrp_lab.bench.tasks import TASKS

Budget = Literal["equal_total", "equal_compute", "amortised", "equal_finetuning"]
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"


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
    tasks: list[dict[str, Any]]
    model: str
    arms: list[dict[str, Any]]
    steps: int
    learning_rates: list[float]
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    batch_size: int = 32
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    lora: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    budgets: list[Budget] = field(default_factory=lambda: ["equal_total"])
    widen: int = 2
    screening_seeds: int | None = None
    metric: str | None = None
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every name, so that a slip costs no training."""
        if not re.fullmatch(_NAME, self.experiment):
            raise ValueError(
                "`experiment` must be of letters, digits and ._+-, as it names a folder, got "
                f"{self.experiment!r}"
            )
        for name in ("tasks", "arms", "seeds", "learning_rates", "budgets"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` must not be empty, got {getattr(self, name)!r}")
        for task in self.tasks:
            _check_keys("tasks", task, _TASK_KEYS)
            check_choice("tasks", task["name"], tuple(TASKS))
        for arm in self.arms:
            _check_keys("arms", arm, _ARM_KEYS)
            check_choice("arms", arm["name"], tuple(ARMS))
        for settings in (self.sections, *self.arms):
            for name in set(ARM_DEFAULTS) & set(settings):
                _check_keys(name, settings[name], _kinds(name))
        for rate in self.learning_rates:
            check_positive("learning_rates", rate)
        for name, least in (("steps", 1), ("batch_size", 1), ("widen", 0)):
            check_integer(name, getattr(self, name), minimum=least)
        if self.screening_seeds is not None:
            check_integer("screening_seeds", self.screening_seeds, minimum=1)


_SECTIONS: dict[str, Any] = dict.fromkeys(ARM_DEFAULTS, dict)
_ENTRIES = {"tasks": list[str | dict], "arms": list[str | dict]}
_KEYS = get_type_hints(Experiment) | _ENTRIES | _SECTIONS
del _KEYS["sections"]
_REQUIRED = {"experiment", "tasks", "model", "arms", "steps", "learning_rates"}
_TASK_KEYS = {"name": str, "options": dict, "steps": int, "batch_size": int}
_ARM_KEYS = {"name": str, "lora": dict} | {k: _KEYS[k] for k in ("learning_rates", "budgets")}
_ARM_KEYS |= _SECTIONS


def load_experiment(path: Path) -> Experiment:
    """Read an experiment; raise ``ValueError`` or ``FileNotFoundError`` that says what is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"the experiment's file '{path}' is missing; give its path")
    settings = read_yaml(path)
    if not isinstance(settings, dict):
        raise ValueError(f"'{path}' must hold a mapping, got {type(settings).__name__}")
    try:
        return experiment_from(settings)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"'{path}': {error}; mend it") from error


def experiment_from(settings: Mapping[str, Any]) -> Experiment:
    """Make an experiment of the YAML file's mapping; sections stand beside the other keys."""
    _check_keys("the experiment", settings, _KEYS)
    if lacking := sorted(_REQUIRED - settings.keys()):
        raise ValueError(f"the experiment lacks {lacking}")
    fields = {name: value for name, value in settings.items() if name not in _SECTIONS}
    for name in _ENTRIES:
        fields[name] = list(map(_named, fields[name]))
    fields["learning_rates"] = list(map(float, fields["learning_rates"]))
    sections = {name: settings[name] for name in _SECTIONS if name in settings}
    return Experiment(**fields, sections=sections)


def _named(entry: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"name": entry}
    if "name" not in entry:
        raise ValueError(f"an entry must be a name or a mapping with `name`, got {entry!r}")
    return entry


def _check_keys(where: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a key that is not ``known``, or a value of another type."""
    if unknown := sorted(map(str, set(settings) - set(known))):
        raise ValueError(f"unknown key(s) {unknown} in {where}; known are {sorted(known)}")
    for name, value in settings.items():
        check_type(name, value, known[name], spelled=name == "learning_rates")


def _kinds(section: str) -> dict[str, Any]:
    """Return the types that a section's settings may have: its default's, lists of it, and null."""
    kinds = {}
    for key, value in ARM_DEFAULTS[section].items():
        kind = type(value) if isinstance(value, str | bool) else float
        kinds[key] = kind | list[kind] | None  # type: ignore[valid-type]
    return kinds


@dataclass(frozen=True)
class Line:
    """Holds an arm in a configuration on a task; its runs differ in rate and seed only."""

    experiment: Experiment
    task: str
    arm: str
    config: Mapping[str, Any]
    grid: Sequence[float]

    def runs(self, rates: Sequence[float], seeds: Sequence[int]) -> list[RunSpec]:
        """Return a run for each rate and seed."""
        name = self.experiment.experiment
        return [
            RunSpec(name, self.arm, self.task, seed, rate, self.config)
            for rate in rates
            for seed in seeds
        ]


def plan(experiment: Experiment, records: Mapping[str, Record]) -> list[RunSpec]:
    """List all runs in order, done or not: the grids, then what ``records`` (by run id) add.

    Runs are added only when all runs that they depend on have a record, so the same records give
    the same plan whatever was interrupted in between.
    """
    all_lines = lines(experiment)
    screening = experiment.seeds[: experiment.screening_seeds]
    runs = [
        run
        for index in range(max(len(line.grid) for line in all_lines))
        for line in all_lines
        for run in line.runs(line.grid[index : index + 1], screening if index else experiment.seeds)
    ]
    grids = []
    for line in all_lines:
        grid, wider = _widening(line, screening, records)
        grids.append(grid)
        runs += wider
    if len(screening) < len(experiment.seeds):
        for reach in (0, 1):  # every line's best rate before any line's neighbours
            for line, grid in zip(all_lines, grids, strict=True):
                runs += _around_best(line, screening, records, grid, reach)
    return list({run.run_id: run for run in runs}.values())


def _widening(
    line: Line, seeds: Sequence[int], records: Mapping[str, Record]
) -> tuple[Sequence[float], list[RunSpec]]:
    """Return the grid that the records widen to, and the runs on what is new in it."""
    grid, runs = line.grid, list[RunSpec]()
    for _ in range(line.experiment.widen):
        best = _best_rate(line.runs(grid, seeds), records)
        new = sorted(set(widened(grid, best)) - set(grid)) if best is not None else []
        if not new:
            break
        runs += line.runs(new, seeds)
        grid = sorted([*grid, *new])
    return grid, runs


def _around_best(
    line: Line,
    screening: Sequence[int],
    records: Mapping[str, Record],
    grid: Sequence[float],
    reach: int,
) -> list[RunSpec]:
    """Run all seeds at the best rate and ``reach`` beside it, until the best of those has them.

    Where that best sits on the edge, the grid is widened once more: all seeds may disagree with
    those that screened.
    """
    rates, seeds = sorted(grid), line.experiment.seeds
    widenings = line.experiment.widen - (len(grid) - len(line.grid))
    known = line.runs(rates, screening)
    added: list[RunSpec] = []
    while (best := _best_rate(known + added, records)) is not None:
        middle = rates.index(best)
        wanted = line.runs(rates[max(0, middle - reach) : middle + reach + 1], seeds)
        new = [run for run in wanted if run not in known and run not in added]
        wider = sorted(set(widened(rates, best)) - set(rates))
        if not new and reach and widenings > 0 and wider:
            widenings -= 1
            rates = sorted([*rates, *wider])
            new = line.runs(wider, seeds)
        if not new:
            break
        added += new
    return added


def _best_rate(runs: Sequence[RunSpec], records: Mapping[str, Record]) -> float | None:
    """Return the rate with the best mean over seeds; None unless all have records, some results."""
    if not all(run.run_id in records for run in runs):
        return None
    metric = str(runs[0].config["metric"])
    done = scores([records[run.run_id] for run in runs], metric)
    return next((best.learning_rate for best in select(done, minimised(metric)).values()), None)


def lines(experiment: Experiment) -> list[Line]:
    """List every task, budget, arm and configuration, in the order of the YAML file.

    An arm that is charged nothing has the first budget only, and each rate once.
    """
    found = []
    for task, budget, arm in itertools.product(experiment.tasks, get_args(Budget), experiment.arms):
        first = experiment.budgets[:1]
        charged = ARMS[arm["name"]].charged
        if budget in (arm.get("budgets", experiment.budgets) if charged else first):
            rates = map(float, arm.get("learning_rates", experiment.learning_rates))
            grid = list(dict.fromkeys(rates))
            for config in _configs(experiment, task, arm, budget):
                found.append(Line(experiment, task["name"], arm["name"], config, grid))
    return found


def _configs(
    experiment: Experiment, task: Mapping[str, Any], arm: Mapping[str, Any], budget: Budget
) -> Iterator[dict[str, Any]]:
    """Yield ``RunSpec.config`` of an arm: what its runs depend on, and nothing else."""
    common = {
        "model": experiment.model,
        "dtype": experiment.dtype,
        "steps": task.get("steps", experiment.steps),
        "batch_size": task.get("batch_size", experiment.batch_size),
        "budget": budget,
        "metric": experiment.metric or TASKS[task["name"]][1],
        "task": dict(task.get("options", {})),
        "lora": {**experiment.lora, **arm.get("lora", {})},
        "training": dict(experiment.training),
    }
    names = ARMS[arm["name"]].sections
    for sections in itertools.product(*(_section(experiment, arm, name) for name in names)):
        yield common | dict(zip(names, sections, strict=True))


def _section(experiment: Experiment, arm: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Merge a section's defaults, the experiment's settings and the arm's; spread lists."""
    merged = {**ARM_DEFAULTS[name], **experiment.sections.get(name, {}), **arm.get(name, {})}
    spread = [value if isinstance(value, list) else [value] for value in merged.values()]
    for values in itertools.product(*spread):
        yield {key: value for key, value in zip(merged, values, strict=True) if value is not None}
