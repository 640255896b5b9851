"""Writes a saved adapter's README.md: what made it, what it cost, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hrp.report.table import markdown_text
from hrp.versions import installed_versions

LOADING = """\
```python
base = AutoModel{kind}.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, {adapter!r})
```
"""
LOADING_CLASSIFIER = """\
```python
config = AutoConfig.from_pretrained({adapter!r})  # with the number and names of the classes
base = AutoModelForSequenceClassification.from_pretrained(
    {base!r}, config=config, ignore_mismatched_sizes=True
)
model = PeftModel.from_pretrained(base, {adapter!r})
```
"""
KINDS = {"CAUSAL_LM": "ForCausalLM", "SEQ_2_SEQ_LM": "ForSeq2SeqLM"}


def card(
    command: str,
    adapter: str,
    lora_config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    start: Mapping[str, Any],
    data: str | None = None,
) -> str:
    """Write the card as Markdown with the metadata that the hub reads.

    Args:
        command: that wrote the adapter, without ``hrp``.
        adapter: its id or path, for the loading example.
        lora_config: PEFT's config of the adapter, as a dict.
        provenance: of the spectrum.
        start: the flags of the start to show, such as its direction.
        data: what was trained on.
    """
    trained = command != "init"
    task = str(lora_config.get("task_type"))
    given_base = str(lora_config.get("base_model_name_or_path"))
    base = _public(given_base)
    metadata = ["---", "library_name: peft", "tags: [lora, hrp]"]
    if base == given_base and not Path(base).exists():  # the hub refuses a path here
        metadata.append(f"base_model: {json.dumps(base)}")
    parts = [
        "\n".join([*metadata, "---", ""]),
        f"# LoRA adapter of {_code(base)}\n",
        f"{'Trained' if trained else 'Made'} with `hrp {command}`"
        + (f" on {_code(_public(data))}" if data else "")
        + ": its LoRA starts from the leading directions of a high-rank preheating (HRP, "
        "[arXiv 2502.07739](https://arxiv.org/abs/2502.07739)). It is a plain PEFT adapter"
        + (".\n" if trained else ", not yet fine-tuned: pass `is_trainable=True` to go on.\n"),
        (LOADING_CLASSIFIER if task == "SEQ_CLS" else LOADING).format(
            kind=KINDS.get(task, ""), base=base, adapter=_public(adapter)
        ),
        _table("Settings", _lora(lora_config) | dict(start) | _preheating(provenance)),
        _table("Preheating cost", _cost(provenance)),
        _table("Versions", installed_versions()),
    ]
    return "\n".join(parts)


def _lora(config: Mapping[str, Any]) -> dict[str, Any]:
    shown = ("r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "target_modules")
    settings = {name: config.get(name) for name in shown}
    if config.get("rank_pattern"):
        ranks = config["rank_pattern"].values()
        settings["rank_pattern"] = f"{len(ranks)} modules of {min(ranks)} to {max(ranks)}"
    return settings


def _preheating(provenance: Mapping[str, Any]) -> dict[str, Any]:
    config = provenance.get("config") or {}
    names = ["preheat_rank", "preheat_steps", "train_factors"]
    if config.get("preheat_steps") == "auto":
        names += ["max_preheat_steps", "subspace_tolerance", "subspace_window"]
    rate = provenance.get("learning_rate") or config.get("learning_rate")  # older spectra
    return {name: config.get(name) for name in names} | {
        "preheat_learning_rate": rate and float(f"{rate:.3g}"),
        "preheat_seed": config.get("seed"),
    }


def _cost(provenance: Mapping[str, Any]) -> dict[str, Any]:
    cost = {"optimizer steps": provenance.get("steps")} | dict(provenance.get("cost") or {})
    if losses := provenance.get("losses"):
        cost["loss, first and last step"] = f"{losses[0]:.4f}, {losses[-1]:.4f}"
    if stopping := provenance.get("stopping"):
        cost["subspaces settled"] = stopping.get("settled")
    return cost


def _table(title: str, rows: Mapping[str, Any]) -> str:
    """Return a table of names and values; a name that is no plain words becomes dead text."""
    lines = [f"## {title}\n", "| | |", "| --- | --- |"]
    for name, value in rows.items():
        plain = name if re.fullmatch(r"[\w ,-]+", name) else markdown_text(name)
        shown = ", ".join(sorted(map(str, value))) if isinstance(value, list | set) else str(value)
        lines.append(f"| {plain} | {_code(shown)} |")
    return "\n".join([*lines, ""])


def _public(name: str) -> str:
    """Return a hub id or a relative path as it is, and only the last part of an absolute one.

    A card is published, and where things lie on the user's machine is nobody's business.
    """
    return Path(name).name if Path(name).is_absolute() else name


def _code(text: str) -> str:
    """Quote text as code, so that a name cannot break out into Markdown or HTML."""
    return f"`{' '.join(text.replace('`', chr(39)).replace('|', chr(92) + '|').split())}`"
