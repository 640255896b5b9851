"""Versions of what a result depends on, for provenance."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

RECORDED = ("hrp-lora", "torch", "transformers", "peft", "accelerate", "trl")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of each recorded package that is installed."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # an optional extra, or a source tree on the path
            continue
    return found
