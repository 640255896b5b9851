"""Records of `experiments/gsm8k_core.py`, one flat JSON object a run, as the report's records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hrp.bench.costs import Costs
from hrp.bench.record import Record, RecordError, RunSpec

_MARK = "test_loss"  # which no record of `hrp bench` has at its top
_SETTINGS = ("preheat_rank", "preheat_steps", "lora", "batch_size", "total_steps")


def is_flat(folder: Path) -> bool:
    """Whether the first file of ``folder`` is a flat record, and so by its place are all."""
    first = next(iter(sorted(folder.glob("*.json"))), None)
    if first is None:
        return False
    try:
        fields = json.loads(first.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(fields, dict) and _MARK in fields and "fine_tuning_steps" in fields


def load_flat(folder: Path) -> list[Record]:
    """Read all flat records in ``folder``, which names the experiment.

    Costs are the steps alone: these runs did not count tokens, and their seconds include loading
    and evaluation, which `hrp.bench.costs.Costs` leaves out.

    Raises:
        RecordError: a file that is no such record; says which.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_record(json.loads(path.read_text(encoding="utf-8")), folder.name))
        except (KeyError, TypeError, ValueError) as error:
            raise RecordError(
                f"'{path}' is not a record like its neighbours ({error!r})"
            ) from error
    return found


def _record(fields: dict[str, Any], experiment: str) -> Record:
    charged, loss = fields["preheat_steps"], fields[_MARK]
    config = {name: fields[name] for name in _SETTINGS if fields.get(name) is not None}
    run = RunSpec(
        experiment, fields["arm"], "test set", fields["seed"], fields["learning_rate"], config
    )
    outcome: dict[str, Any] = {"status": "ok", "metrics": {_MARK: loss}}
    if loss is None:
        outcome = {"status": "failed", "reason": f"the run is marked {fields['status']!r}"}
    return Record(
        run,
        **outcome,
        losses=tuple((int(step), float(value)) for step, value in fields["train_losses"]),
        costs=Costs(
            preheat_steps=charged, finetune_steps=fields["fine_tuning_steps"], charged_steps=charged
        ),
        versions=fields["versions"],
        device=fields["device"],
        command=fields["command"],
    )
