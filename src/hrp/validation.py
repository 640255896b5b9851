"""Checks values that users give, each with an error that names the field and the range."""

from __future__ import annotations

import math


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
