"""Lists the versions that a result depends on, and names those that are too old."""

from __future__ import annotations

import platform
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version

PACKAGE = "hrp-lora"
UNKNOWN = "0+unknown"
RECORDED = (PACKAGE, "torch", "transformers", "peft", "accelerate", "trl")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of each recorded package that is installed."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        with suppress(PackageNotFoundError):  # an optional extra, or a source tree on the path
            found[name] = version(name)
    return found


def own_version() -> str:
    """Return HRP's version as installed; `UNKNOWN` for a source tree that is only on the path."""
    return installed_versions().get(PACKAGE, UNKNOWN)


def too_old(*extras: str) -> list[str]:
    """List installed packages that are older than HRP asks for, each with the remedy.

    Args:
        extras: optional parts of HRP, such as "cli", whose packages are looked at too. A package
            that is not installed is passed over: importing it says so.
    """
    from packaging.requirements import Requirement  # `hrp --help` does not need it

    try:
        wanted = [Requirement(text) for text in requires(PACKAGE) or ()]
    except PackageNotFoundError:
        return []
    old = []
    for package in wanted:
        marker = package.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        with suppress(PackageNotFoundError):
            installed = version(package.name)
            if not package.specifier.contains(installed, prereleases=True):
                need = f"{package.name}{package.specifier}"
                old.append(
                    f"{package.name} {installed} is installed and {need} is needed; "
                    f"pip install '{need}'"
                )
    return old


def warn_of_old_versions() -> None:
    """Warn, once a line of code, of each core package that is older than HRP asks for."""
    for text in too_old():
        warnings.warn(text, stacklevel=3)
