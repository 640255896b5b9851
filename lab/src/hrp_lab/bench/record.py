"""A record says what a run was, what came of it and what it cost; it is one JSON object."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hrp.validation import check_integer, check_positive, check_type
from hrp_lab.bench.costs import Costs

SCHEMA = "hrp-record"
SCHEMA_VERSION = 1
CURVE_DIGITS = 5  # significant digits of the losses in packed records
Status = Literal["ok", "failed", "not-applicable"]
_KINDS: dict[str, Any] = {
    "status": Status,
    **dict.fromkeys(("reason", "device", "command", "started", "ended"), str),
    "git_commit": str | None,
    "git_dirty": bool | None,
}
LossCurve = tuple[tuple[int, float], ...]


class RecordError(ValueError):
    """A file is not a record that this version can read, or two records contradict."""


@dataclass(frozen=True)
class RunSpec:
    """Describe a run before it is run; its `run_id` names the record.

    Args:
        seed: of data order, adapters and preheating.
        learning_rate: of fine-tuning.
        config: all other settings, JSON types only (tuples become lists).

    Raises:
        ValueError: an empty name, a negative seed, a learning rate that is not positive.
        TypeError: ``config`` holds what JSON cannot.
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
        """Return 16 hexadecimal digits of a hash of all fields."""
        identity = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Record:
    """Hold the outcome of a run.

    Args:
        status: "ok", "failed", or "not-applicable" (the arm cannot run on this task).
        reason: why not, when the status is not "ok".
        metrics: final metrics by name; finite.
        losses: (step, training loss) of fine-tuning; a loss that is not finite reads back as NaN.
        git_commit: of the source tree, None outside one; ``git_dirty``: whether tracked files
            differed from it.
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
        """Check the types of all fields, and that the status is borne out."""
        for name, kind in _KINDS.items():
            check_type(name, getattr(self, name), kind)
        check_type("versions", list(self.versions.values()), list[str])
        if self.status != "ok" and not self.reason:
            raise ValueError(f"`reason` must say why the status is {self.status!r}, got ''")
        bad = [name for name, value in self.metrics.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(f"`metrics` must be finite, got {bad}; record the run as 'failed'")
        if self.status == "ok" and not self.metrics:
            raise ValueError("`metrics` must not be empty when the status is 'ok'")

    @property
    def run_id(self) -> str:
        """Return the `RunSpec.run_id` of the run."""
        return self.run.run_id

    @property
    def arm(self) -> str:
        """Return the name of the arm."""
        return self.run.arm

    def to_json(self) -> str:
        """Return one indented JSON object, strict JSON: losses that are not finite are null."""
        return json.dumps(self._fields(), indent=1, allow_nan=False) + "\n"

    def to_line(self) -> str:
        """Return `to_json` on one line, its loss curves rounded to `CURVE_DIGITS` digits."""
        fields = self._fields(lambda loss: float(f"{loss:.{CURVE_DIGITS}g}"))
        return json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n"

    def _fields(self, rounded: Callable[[float], float] = float) -> dict[str, Any]:
        """Return all fields with the header, in JSON types."""

        def shown(loss: float) -> float | None:
            return rounded(loss) if math.isfinite(loss) else None

        header = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "run_id": self.run_id}
        return (
            header
            | dataclasses.asdict(self)
            | {
                "losses": [[step, shown(loss)] for step, loss in self.losses],
                "preheat_losses": [shown(loss) for loss in self.preheat_losses],
            }
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Return the record that `to_json` or `to_line` wrote.

        Raises:
            RecordError: anything else; says what is wrong.
        """
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
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise RecordError(f"its fields are not those of a record ({error})") from error
        if run_id != record.run_id:
            raise RecordError(f"`run_id` {run_id!r} is not that of its run, {record.run_id!r}")
        return record


def _parsed(fields: dict[str, Any]) -> dict[str, Any]:
    def loss(value: float | None) -> float:
        return math.nan if value is None else float(value)

    return fields | {
        "run": RunSpec(**fields["run"]),
        "costs": Costs(**fields["costs"]),
        "losses": tuple((int(step), loss(value)) for step, value in fields["losses"]),
        "preheat_losses": tuple(map(loss, fields["preheat_losses"])),
        "metrics": {name: float(value) for name, value in fields["metrics"].items()},
    }


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the tree around ``folder``, and whether tracked files differ from it.

    It is (None, None) outside a repository or without git. Untracked files do not count: the
    records themselves are such files.
    """
    try:
        told = subprocess.run(
            ["/usr/bin/env", "git", "describe", "--always", "--abbrev=40", "--exclude=*",
             "--dirty"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None, None
    commit, dirty, _ = told.stdout.partition("-dirty")
    return commit.strip(), bool(dirty)
