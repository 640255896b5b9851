"""Records: one JSON file a run, written whole or not at all, named by what the run is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from hrp.files import write_text
from hrp.validation import check_choice, check_integer, check_positive
from hrp_lab.bench.costs import Costs

SCHEMA = "hrp-record"
SCHEMA_VERSION = 1
Status = Literal["ok", "failed", "not-applicable"]
LossCurve = tuple[tuple[int, float], ...]


class RecordError(ValueError):
    """A file is not a record that this version can read, or two records contradict."""


@dataclass(frozen=True)
class RunSpec:
    """What a run is, before it is run; its `run_id` names the record.

    Args:
        experiment: name of the experiment that asked for the run.
        arm: name of the initialiser or variant.
        task: name of the task.
        seed: of data order, adapters and preheating.
        learning_rate: of fine-tuning.
        config: all other settings, JSON types only (tuples become lists).

    Raises:
        ValueError: an empty name, a negative seed, a learning rate that is not positive.
        TypeError: ``config`` holds what JSON cannot.

    >>> run = RunSpec("demo", "lora", "gsm8k", 0, 1e-3, {"rank": 4})
    >>> run.run_id == RunSpec("demo", "lora", "gsm8k", 0, 1e-3, {"rank": 4}).run_id
    True
    >>> run.run_id == dataclasses.replace(run, seed=1).run_id
    False
    """

    experiment: str
    arm: str
    task: str
    seed: int
    learning_rate: float
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the fields and bring ``config`` to the form in which it will be read back."""
        for name in ("experiment", "arm", "task"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"`{name}` must be a name, got {getattr(self, name)!r}")
        check_integer("seed", self.seed, minimum=0)
        check_positive("learning_rate", self.learning_rate)
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        config = json.loads(json.dumps(dict(self.config), allow_nan=False))
        object.__setattr__(self, "config", config)

    @property
    def run_id(self) -> str:
        """16 hexadecimal digits of a hash of all fields."""
        identity = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """What came of a run.

    Args:
        run: what was run.
        status: "ok", "failed", or "not-applicable" (the arm cannot run on this task).
        reason: why not, when the status is not "ok".
        metrics: final metrics by name; finite.
        losses: (step, training loss) of fine-tuning; a loss that is not finite reads back as NaN.
        preheat_losses: loss per preheating step.
        costs: see `hrp_lab.bench.costs.Costs`.
        git_commit: commit of the source tree, None outside one; ``git_dirty``: whether tracked
            files differed from it.
        versions: of the packages that matter.
        device: name of the device.
        command: command line that ran it.
        started: UTC time, ISO 8601; likewise ``ended``.

    Raises:
        ValueError: an unknown status, a missing reason, or an "ok" run without finite metrics.
    """

    run: RunSpec
    status: Status
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    losses: LossCurve = ()
    preheat_losses: tuple[float, ...] = ()
    costs: Costs = field(default_factory=Costs)
    git_commit: str | None = None
    git_dirty: bool | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    command: str = ""
    started: str = ""
    ended: str = ""

    def __post_init__(self) -> None:
        """Check that the status is borne out."""
        check_choice("status", self.status, get_args(Status))
        if self.status != "ok" and not self.reason:
            raise ValueError(f"`reason` must say why the status is {self.status!r}, got ''")
        bad = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"`metrics` must be finite, got {bad}; record the run as 'failed'")
        if self.status == "ok" and not self.metrics:
            raise ValueError("`metrics` must not be empty when the status is 'ok'")

    @property
    def run_id(self) -> str:
        """See `RunSpec.run_id`."""
        return self.run.run_id

    @property
    def arm(self) -> str:
        """Name of the arm."""
        return self.run.arm

    def to_json(self) -> str:
        """Return one indented JSON object, strict JSON: losses that are not finite are null."""
        fields = dataclasses.asdict(self)
        fields["losses"] = [[step, _finite(loss)] for step, loss in self.losses]
        fields["preheat_losses"] = [_finite(loss) for loss in self.preheat_losses]
        header = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "run_id": self.run_id}
        return json.dumps(header | fields, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Inverse of `to_json`; raises `RecordError` on anything else, saying what is wrong."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"not JSON ({error})") from error
        if not isinstance(fields, dict) or fields.pop("schema", None) != SCHEMA:
            raise RecordError(f"no JSON object with `schema` '{SCHEMA}'")
        if (version := fields.pop("schema_version", None)) != SCHEMA_VERSION:
            raise RecordError(f"`schema_version` must be {SCHEMA_VERSION}, got {version!r}")
        run_id = fields.pop("run_id", None)
        try:
            record = cls(**_parsed(fields))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise RecordError(f"its fields are not those of a record ({error})") from error
        if run_id != record.run_id:
            raise RecordError(f"`run_id` {run_id!r} is not that of its run, {record.run_id!r}")
        return record


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _parsed(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {
        "run": RunSpec(**fields["run"]),
        "costs": Costs(**fields["costs"]),
        "losses": tuple((int(step), _loss(loss)) for step, loss in fields["losses"]),
        "preheat_losses": tuple(map(_loss, fields["preheat_losses"])),
        "metrics": {name: float(value) for name, value in fields["metrics"].items()},
    }


def record_path(run: RunSpec, folder: Path) -> Path:
    """Where the record of ``run`` lies in ``folder``."""
    return folder / f"{run.run_id}.json"


def write_record(record: Record, folder: Path) -> Path:
    """Write ``record`` into ``folder``, over an earlier one of its run; whole or not at all."""
    return write_text(record_path(record.run, folder), record.to_json())


def load_records(folder: Path) -> list[Record]:
    """All records under ``folder`` and its sub-folders, ordered by run id.

    Raises:
        FileNotFoundError: no such folder, or no record in it.
        RecordError: files that are no records, or two records of one run; names them all.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"'{folder}' is no folder; give the folder of a benchmark's records"
        )
    paths = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    if not paths:
        raise FileNotFoundError(
            f"'{folder}' holds no records (*.json); run `hrp-lab bench run` first"
        )
    found: dict[str, Record] = {}
    broken: list[str] = []
    for path in paths:
        try:
            record = _read(path)
            if record.run_id in found:
                raise RecordError(f"a second record of run {record.run_id}")
            found[record.run_id] = record
        except RecordError as error:
            broken.append(f"'{path}': {error}")
    if broken:
        raise RecordError(
            f"{len(broken)} of {len(paths)} files are not usable records; remove them or run them "
            "again:\n  " + "\n  ".join(broken[:10])
        )
    return [found[run_id] for run_id in sorted(found)]


def _read(path: Path) -> Record:
    try:
        return Record.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8 text ({error})") from error


def missing(runs: Iterable[RunSpec], folder: Path, retry_failed: bool = False) -> list[RunSpec]:
    """Runs that have no record in ``folder`` yet, in the order given, each once.

    A failure is a record too: with ``retry_failed`` such runs count as missing.
    Raises `RecordError` where a record that must be read is broken.
    """
    unique = {run.run_id: run for run in runs}
    return [run for run in unique.values() if not _is_done(record_path(run, folder), retry_failed)]


def _is_done(path: Path, retry_failed: bool) -> bool:
    if not path.is_file() or not retry_failed:
        return path.is_file()
    try:
        return _read(path).status != "failed"
    except RecordError as error:
        raise RecordError(f"'{path}': {error}; remove it") from error


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Commit of the source tree around ``folder`` and whether tracked files differ from it.

    (None, None) outside a repository or without git. Untracked files do not count: the records
    themselves are such files.
    """
    try:
        commit = subprocess.run(
            ["/usr/bin/env", "git", "rev-parse", "HEAD"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        changes = subprocess.run(
            ["/usr/bin/env", "git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit.stdout.strip(), bool(changes.stdout.strip())
