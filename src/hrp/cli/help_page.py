"""Prints a training command's short help: the flags that people use, in groups, on one screen."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

# Group -> flag -> what it says; a command shows those that it has.
GROUPS: dict[str, dict[str, str]] = {
    "model and data": {
        "task": "kind of model; required",
        "model_name_or_path": "base model: hub id or folder; required",
        "dataset_path": "local JSON, JSONL, CSV or Parquet file, or folder",
        "dataset_name": "data set on the hub, instead of --dataset_path",
        "prompt_template": "makes the prompt of columns: 'Question: {question}\\nAnswer:'",
        "completion_template": "makes the completion likewise: ' {answer}'",
        "label_column": "column of the classes",
    },
    "LoRA": {
        "lora_r": "rank",
        "lora_alpha": "scaling is lora_alpha / r",
        "lora_target_modules": "names such as q_proj v_proj, or all-linear",
    },
    "preheating": {
        "preheat_rank": "rank of the temporary LoRA",
        "preheat_steps": "steps, a share, or auto (default: 0.2; classifiers: 0.05)",
        "direction": "start lora_A, lora_B or both from it",
        "spectrum": "start from a folder of `hrp preheat`; no preheating now",
    },
    "training": {
        "learning_rate": "preheating's follows from it; sweep it",
        "num_train_epochs": "passes over the data",
        "per_device_train_batch_size": "rows a step on each device",
        "bf16": "train in bfloat16",
    },
    "output, and more": {
        "output_dir": "adapter folder to write",
        "resume": "go on with the interrupted run that is there",
        "overwrite": "throw away what an earlier run left there",
        "config": "YAML file whose keys are flags; flags override it",
        "help-all": "every flag, TRL's and HF's included",
    },
}
_METAVARS = {"config": "FILE", "dataset_path": "PATH", "spectrum": "DIR", "output_dir": "DIR"}
_WITHOUT = ("config", "help-all", "resume", "overwrite")  # whose defaults tell nothing


def short_help(parser: argparse.ArgumentParser) -> str:
    """Return the description, the usage, the flags of `GROUPS` that ``parser`` has, the example."""
    actions = {option: a for a in parser._actions for option in a.option_strings}
    parts = [str(parser.description).strip(), f"usage: {parser.usage}"]
    for title, flags in GROUPS.items():
        rows = [_row(name, text, actions.get(f"--{name}")) for name, text in flags.items()]
        shown = [row for row in rows if row]
        parts += ["", f"{title}:", *shown] if shown else []
    return "\n".join([*parts, "", str(parser.epilog).rstrip()])


def _row(name: str, text: str, action: argparse.Action | None) -> str:
    if action is None and name != "config":
        return ""
    flag = f"--{name} {_METAVARS.get(name, '')}"
    return f"  {flag:<32}{' '.join(_told(name, text, action))}"


def _told(name: str, text: str, action: argparse.Action | None) -> Iterator[str]:
    """Give what a flag does, its choices where they are few, and its true default."""
    yield text
    if action is None or name in _WITHOUT or "default:" in text:
        return
    if name == "bf16" and action.default is None:  # TRL's way to say so
        yield "(default: True; False on a CPU that lacks it)"
        return
    choices = list(map(str, action.choices or ()))
    few = f"{', '.join(choices)}; " if choices else ""
    if action.default not in (None, argparse.SUPPRESS):
        default = getattr(action.default, "value", action.default)
        shown = ", ".join(map(str, default)) if isinstance(default, list) else str(default)
        yield f"({few}default: {shown})"
    elif few:
        yield f"({few.removesuffix('; ')})"
