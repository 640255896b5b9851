"""Writes JSON records of what the commands measured: settings, table, versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hrp.files import write_text

_VERSIONS = ("hrp-lora", "numpy", "scipy", "torch")


def write_record(
    path: Path, command: str, settings: Mapping[str, Any], **measured: Sequence[Any] | Any
) -> None:
    """Write one record, whole or not at all; folders are made.

    Args:
        path: the file; replaced if it exists.
        command: the command line that reproduces it.
        settings: the config's fields.
        measured: what came out, by name.

    Raises:
        ValueError: a value is NaN or infinite, which JSON has no word for.
    """
    versions = {"python": platform.python_version()}
    versions |= {name: version(name) for name in _VERSIONS}
    record = {"command": command, "settings": settings, **measured, "versions": versions}
    write_text(path, json.dumps(record, indent=1, allow_nan=False) + "\n")
