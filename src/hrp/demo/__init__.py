"""Holds an embedded base model and its task, enough to see HRP work offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrp.demo.base_model import BASE, load_base

__all__ = ["BASE", "load_base"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``hrp demo --help`` loads no transformers."""
    if name not in __all__:
        raise AttributeError(f"module 'hrp.demo' has no attribute {name!r}")
    from hrp.demo import base_model

    return getattr(base_model, name)
