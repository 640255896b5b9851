"""Takes means over random draws with their standard errors, where no closed form exists."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Estimate(NamedTuple):
    """Holds a sample mean and its standard error (0 for a constant)."""

    mean: float
    standard_error: float


def estimate(values: Float[np.ndarray, " draws"]) -> Estimate:
    """Return the mean over draws; raises ``ValueError`` for fewer than two, which have no spread.

    >>> estimate(np.array([1.0, 3.0]))
    Estimate(mean=2.0, standard_error=1.0)
    """
    if values.size < 2:
        raise ValueError(f"`draws` must be at least 2 for a standard error, got {values.size}")
    # Infinite values (a loss never reached) have no spread, and numpy would warn.
    if not np.isfinite(values).all():
        return Estimate(float("inf"), float("nan"))
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))
