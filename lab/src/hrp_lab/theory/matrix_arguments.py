"""Checks ranks and times that a user passes; `hrp.validation` checks the rest."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from jaxtyping import Float


def checked_rank(name: str, rank: Any, limit: int, limit_name: str) -> int:
    """Return ``rank`` as an int; raises ``ValueError`` unless 1 <= rank <= limit."""
    try:
        value = operator.index(rank)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {rank!r}") from None
    if not 1 <= value <= limit:
        raise ValueError(f"`{name}` must be between 1 and {limit_name} = {limit}, got {value}")
    return value


def checked_times(times: Any) -> Float[np.ndarray, " times"]:
    """Return ``times`` as float64; raises ``ValueError`` unless finite, >= 0 and ascending."""
    values = np.atleast_1d(np.asarray(times, dtype=np.float64))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"`times` must be a list of times, got shape {np.shape(times)}")
    if not np.isfinite(values).all():
        raise ValueError("`times` must be finite; the limit has closed forms in `hrp_lab.theory`")
    if values.min() < 0:
        raise ValueError(f"`times` must be at least 0, got {values.min():g}; a flow starts at 0")
    if (np.diff(values) <= 0).any():
        raise ValueError("`times` must be strictly ascending; sort them and drop repeated ones")
    return values
