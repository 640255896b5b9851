"""Checks values that users give, each with an error that names the field and the range."""

from __future__ import annotations

import math
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def check_integer(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is an integer from ``minimum`` to ``maximum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}, got {value!r}")
    if maximum is not None and value > maximum:
        raise ValueError(f"`{name}` must be an integer <= {maximum}, got {value!r}")


def check_steps(value: object) -> None:
    """Raise ``ValueError`` unless ``value`` can be ``preheat_steps``."""
    if value is None or value == "auto" or (isinstance(value, float) and 0 < value < 1):
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f"`preheat_steps` must be an integer >= 1, got {value!r}; or give 'auto', or a share "
            "of fine-tuning's steps between 0 and 1"
        )


def check_positive(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{name}` must be a number > 0, got {value!r}")
    if not (is_finite(value) and value > 0):
        raise ValueError(f"`{name}` must be finite and > 0, got {value!r}")


def is_finite(value: float) -> bool:
    """Tell whether a number is finite as a float, which an integer may be too large for.

    >>> is_finite(1.5), is_finite(10**400), is_finite(float("nan"))
    (True, False, False)
    """
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def check_share(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"`{name}` must be a number from 0 to below 1, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of ``choices``."""
    if value not in choices:
        allowed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}")


def check_scale(scale: object, direction: str) -> None:
    """Raise ``ValueError`` unless ``scale`` is usable with ``direction``."""
    check_positive("scale", scale)
    if direction == "AB" and scale != 1:
        raise ValueError(
            f"`scale` must be 1 with `direction` 'AB', whose scale is that of the preheated "
            f"update, got {scale!r}; leave `scale` out, or choose direction 'A' or 'B'"
        )


_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text in quotes"}


def check_type(name: str, value: object, kind: Any, spelled: bool = False) -> None:
    """Raise ``ValueError`` unless a ``value`` out of a YAML file has the type ``kind``.

    With ``spelled``, text will do that spells a number or a truth value: YAML takes 1e-4 for text.

    >>> check_type("lora_r", "8", int, spelled=True)
    """
    if not has_type(value, kind, spelled):
        raise ValueError(f"`{name}` must be {' or '.join(_words(kind))}, got {value!r}")


def has_type(value: Any, kind: Any, spelled: bool = False) -> bool:
    """Return whether a value has a type as annotations write it; see `check_type`."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return any(has_type(value, part, spelled) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is Any:
        return True
    if spelled and origin in (bool, int, float) and isinstance(value, str):
        if origin is bool:
            return value.lower() in ("true", "false", "yes", "no", "t", "f", "y", "n", "1", "0")
        with suppress(ValueError):
            value = origin(value)
    if origin in (int, float):
        return isinstance(value, int | origin) and not isinstance(value, bool)
    if issubclass(origin, list):
        return isinstance(value, list) and all(has_type(one, parts[0], spelled) for one in value)
    if origin in (bool, NoneType) or issubclass(origin, str):
        return isinstance(value, str if issubclass(origin, str) else origin)
    return isinstance(value, dict)


def _words(kind: Any) -> list[str]:
    """Say in words what values have a type, each way once."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return list(dict.fromkeys(word for part in parts for word in _words(part)))
    if origin is Literal:
        return [repr(part) for part in parts]
    if issubclass(origin, list):
        return [f"a list of {' or '.join(_words(parts[0]))}"]
    if origin is NoneType:
        return ["null"]
    known = next((word for base, word in _WORDS.items() if issubclass(origin, base)), "a mapping")
    return [known]
