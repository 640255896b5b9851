"""Reads an HRPConfig from the settings of another tool, such as the ``hrp:`` part of a YAML."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from hrp.config import HRPConfig


def config_from(settings: Mapping[str, Any] | None) -> HRPConfig:
    """Return the config of these fields; nothing given means `HRPConfig()`.

    Raises:
        TypeError: ``settings`` are no mapping.
        ValueError: a field is unknown or out of range; the message names it.

    >>> config_from({"preheat_rank": 64}).preheat_rank
    64
    """
    if settings is None:
        return HRPConfig()
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"`hrp` must hold fields of the HRPConfig by name, got {settings!r}; write "
            "`preheat_rank: 128` and so on below it, or leave it out"
        )
    known = [field.name for field in dataclasses.fields(HRPConfig)]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{close[0]}`?" if close else f"the fields are {known}"
            raise ValueError(f"unknown field `{name}` in `hrp`; {hint}")
    return HRPConfig.from_dict(dict(settings))
