"""Versions of what a result depends on, for provenance."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGE = "hrp-lora"
UNKNOWN = "0+unknown"
RECORDED = (PACKAGE, "torch", "transformers", "peft", "accelerate", "trl")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of each recorded package that is installed."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional extra, or a source tree on the path
            continue
    return found


def own_version() -> str:
    """Version of HRP as installed; `UNKNOWN` for a source tree that is only on the path."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return UNKNOWN
