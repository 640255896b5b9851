"""Write records in the format of PEFT's ``method_comparison`` results.

Each run is a JSON file with ``run_info``, ``train_info`` and ``meta_info``, as PEFT's MetaMathQA
runner writes them and its result pages read them (https://github.com/huggingface/peft, folder
``method_comparison``). What a record does not know, such as the number of trainable
parameters, is null, or 0 where those pages need an integer. The peak memory stands for all three
memory figures.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hrp.files import write_text
from hrp_lab.bench.arm_defaults import ARM_DEFAULTS, adalora_fields
from hrp_lab.bench.record import Record

_STATUS = {"ok": "success", "failed": "failed"}
_ACCURACIES = ("exact_match", "accuracy")
_PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")
# Arms that are words of PEFT's `init_lora_weights`, and switches of its `LoraConfig`. All others
# write their factors into a plain LoRA.
_PEFT_STARTS = {"gaussian", "orthogonal", "pissa", "olora", "mica", "eva", "corda", "lora_ga"}
_PEFT_SWITCHES = {"rslora": "use_rslora", "dora": "use_dora"}  # by how an arm's name begins


def export_records(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write one file a run into ``folder``; return their paths.

    Runs that are not applicable are left out: the format has no such status.
    """
    written = []
    for record in records:
        if record.status not in _STATUS:
            continue
        path = folder / f"{re.sub(r'[^A-Za-z0-9._+-]+', '--', _name(record))}.json"
        text = json.dumps(peft_result(record), indent=2, allow_nan=False) + "\n"
        written.append(write_text(path, text))
    return written


def peft_result(record: Record) -> dict[str, Any]:
    """Turn a record into PEFT's result; raise ``ValueError`` if it is "not-applicable".

    The test accuracy is the metric "exact_match" or "accuracy". ``peft_config`` is what PEFT made
    the adapter from; a start that PEFT does not know stands in ``train_config``, as ``arm`` with
    its settings.
    """
    if record.status not in _STATUS:
        raise ValueError(f"`record` must have run, got status {record.status!r} ({record.reason})")
    return {
        "run_info": _run_info(record),
        "train_info": _train_info(record),
        "meta_info": _meta_info(record),
    }


def _name(record: Record) -> str:
    run = record.run
    return f"{run.arm}/{run.experiment}-lr_{run.learning_rate:g}-seed_{run.seed}-{record.run_id}"


def _run_info(record: Record) -> dict[str, Any]:
    run = record.run
    return {
        "created_at": record.started,
        "total_time": record.costs.wall_s,
        "experiment_name": _name(record),
        "peft_branch": None,
        "train_config": {
            "model_id": run.config.get("model"),
            "max_steps": record.costs.finetune_steps,
            "seed": run.seed,
            "optimizer_kwargs": {"lr": run.learning_rate},
            "task": run.task,
            "arm": run.arm,
            **{name: run.config[name] for name in ARM_DEFAULTS if name in run.config},
        },
        "peft_config": _peft_config(record),
        "error_msg": record.reason,
    }


def _peft_config(record: Record) -> dict[str, Any] | None:
    """Return what PEFT made the adapter from; None is the format's word for full fine-tuning."""
    if record.arm == "full":
        return None
    config: dict[str, Any] = {"peft_type": "LORA", "init_lora_weights": True}
    config |= record.run.config.get("lora", {})
    if record.arm in _PEFT_STARTS:
        config["init_lora_weights"] = record.arm
    if switch := _PEFT_SWITCHES.get(record.arm.partition("-")[0]):
        config[switch] = True
    if record.arm == "adalora":
        settings = ARM_DEFAULTS["adalora"] | record.run.config.get("adalora", {})
        config |= adalora_fields(settings, config["r"], record.costs.finetune_steps)
        config["peft_type"] = "ADALORA"
    return config


def _train_info(record: Record) -> dict[str, Any]:
    costs, metrics = record.costs, record.metrics
    curve = [
        {"step": step, "train loss": loss if math.isfinite(loss) else None}
        for step, loss in record.losses
    ]
    last = {  # from which PEFT's pages read the result
        "step": costs.finetune_steps,
        "test accuracy": next((metrics[name] for name in _ACCURACIES if name in metrics), None),
        "train loss": curve[-1]["train loss"] if curve else None,
        "train samples": costs.finetune_steps * record.run.config.get("batch_size", 0),
        "train total tokens": costs.tokens,
        **{f"test {name}": value for name, value in metrics.items() if name not in _ACCURACIES},
    }
    return {
        "accelerator_memory_reserved_avg": costs.peak_memory_bytes,
        "accelerator_memory_max": costs.peak_memory_bytes,
        "accelerator_memory_reserved_99th": costs.peak_memory_bytes,
        "train_time": costs.wall_s,
        "file_size": 0,
        "num_trainable_params": None,
        "num_total_params": None,
        "status": _STATUS[record.status],
        "metrics": [*curve, last],
    }


def _meta_info(record: Record) -> dict[str, Any]:
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        packages[f"{name}-version"] = record.versions.get(name)
        packages[f"{name}-commit-hash"] = None
    packages["hrp-lora-version"] = record.versions.get("hrp-lora")
    packages["hrp-lora-commit-hash"] = record.git_commit
    return {
        "model_info": {"sha": None, "created_at": None},
        "dataset_info": {record.run.task: {"sha": None, "created_at": None}},
        "package_info": packages,
        "system_info": {"accelerator": record.device},
        "pytorch_info": "",
    }
