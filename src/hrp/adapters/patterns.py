"""Writes PEFT's ``rank_pattern`` and ``alpha_pattern`` for modules that differ in rank."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")


def lora_fields(
    ranks: Mapping[str, int], scaling: float, use_rslora: bool = False
) -> dict[str, Any]:
    """Return ``LoraConfig`` fields that give each module its rank, and all the same ``scaling``.

    ``r`` is the largest rank, so that a server which sizes its buffers by ``r`` has room for all.
    PEFT computes ``lora_alpha / r`` of each module (``/ sqrt(r)`` with rsLoRA); the patterns undo
    that.
    """
    largest = max(ranks.values())
    lower = {name: rank for name, rank in ranks.items() if rank < largest}

    def alpha(rank: int) -> float:
        value = scaling * (math.sqrt(rank) if use_rslora else rank)
        return int(value) if value.is_integer() else value  # as a user would write it

    alphas = {name: alpha(rank) for name, rank in lower.items()}
    return {
        "r": largest,
        "lora_alpha": alpha(largest),
        "rank_pattern": exact_patterns(lower, ranks),
        "alpha_pattern": exact_patterns(alphas, ranks),
    }


def exact_patterns(values: Mapping[str, Value], names: Collection[str]) -> dict[str, Value]:
    """Return PEFT patterns that give each module its value, and none of the other ``names`` any.

    PEFT matches a pattern against the end of a name, first come first served: longest first, and a
    name that is the end of another one is tied to the beginning.
    """

    def pattern(name: str) -> str:
        ends_another = any(other.endswith(f".{name}") for other in names)
        return f"^{re.escape(name)}" if ends_another else re.escape(name)

    return {pattern(name): values[name] for name in sorted(values, key=len, reverse=True)}
