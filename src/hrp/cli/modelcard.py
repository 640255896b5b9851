"""Writes a saved adapter's README.md: what made it, what it cost, and how to load it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from hrp.report.table import markdown_text
from hrp.versions import installed_versions

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
}


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
    base = str(lora_config.get("base_model_name_or_path"))
    on_hub = not (Path(base).is_absolute() or Path(base).exists())  # which refuses a path here
    settings = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # noqa: S701  # of HTML; `code` and `plain` quote for Markdown
        trim_blocks=True,
    )
    settings.filters |= {"code": _code, "plain": _plain, "repr": repr, "shown": _shown}
    return settings.get_template("card.md").render(
        command=command,
        base=_public(base),
        hub_base=json.dumps(base) if on_hub else None,
        adapter=_public(adapter),
        auto_class=AUTO_CLASSES.get(str(lora_config.get("task_type")), "AutoModel"),
        data=data and _public(data),
        tables={
            "Settings": _lora(lora_config) | dict(start) | _preheating(provenance),
            "Preheating cost": _cost(provenance),
            "Versions": installed_versions(),
        },
    )


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
        "preheat_learning_rate": f"{rate:.3g}" if isinstance(rate, float) else rate,
        "preheat_seed": config.get("seed"),
    }


def _cost(provenance: Mapping[str, Any]) -> dict[str, Any]:
    cost = {"optimizer steps": provenance.get("steps")} | dict(provenance.get("cost") or {})
    if losses := provenance.get("losses"):
        cost["loss, first and last step"] = f"{losses[0]:.4f}, {losses[-1]:.4f}"
    if stopping := provenance.get("stopping"):
        cost["subspaces settled"] = stopping.get("settled")
    return cost


def _plain(name: str) -> str:
    """Return a name as it is where it is plain words, and as dead text elsewhere."""
    return name if re.fullmatch(r"[\w ,-]+", name) else markdown_text(name)


def _shown(value: Any) -> str:
    return ", ".join(sorted(map(str, value))) if isinstance(value, list | set) else str(value)


def _public(name: str) -> str:
    """Return a hub id or a relative path as it is, and only the last part of an absolute one.

    A card is published, and where things lie on the user's machine is nobody's business.
    """
    return Path(name).name if Path(name).is_absolute() else name


def _code(text: str) -> str:
    """Quote text as code, so that a name cannot break out into Markdown or HTML."""
    return f"`{' '.join(text.replace('`', chr(39)).replace('|', chr(92) + '|').split())}`"
