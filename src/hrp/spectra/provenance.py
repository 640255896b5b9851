"""Checks the values that a spectrum's provenance has under the names that HRP reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OBJECTS = ("config", "cost", "settings", "stopping", "versions")
_TEXTS = ("base_model", "run", "adapter_name")
_NUMBERS = ("steps", "seed", "learning_rate")
_LISTS = {"losses": (int, float), "unreached": (str,), "without_metric": (str,)}


def odd_value(provenance: Mapping[str, Any]) -> str | None:
    """Return, in words, what is of another kind than HRP writes; None where nothing is."""
    for name, value in provenance.items():
        if value is None:
            continue
        for names, kind, said in (
            (_OBJECTS, dict, "an object"),
            (_TEXTS, str, "text"),
            (_NUMBERS, int | float, "a number"),
            (_LISTS, list | tuple, "a list"),
        ):
            if name in names and (not isinstance(value, kind) or isinstance(value, bool)):
                return f"`{name}` of the provenance must be {said}, got {type(value).__name__}"
        for entry in value if name in _LISTS else ():
            if not isinstance(entry, _LISTS[name]) or isinstance(entry, bool):
                return f"`{name}` of the provenance must not hold {type(entry).__name__}"
    return None
