"""Compares predictions with measurements: means over draws, and the rows of ``theory check``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

Relation = Literal["=", "<=", ">="]
Pairs = list[tuple[Any, Any]]
"""(predicted, measured), a number or an array of the same shape each."""

EXACT = 1e-8
STANDARD_ERRORS = 3.0


class Estimate(NamedTuple):
    """Holds a sample mean and its standard error (0 for a constant)."""

    mean: float
    standard_error: float


def estimate(values: Float[np.ndarray, " draws"]) -> Estimate:
    """Return the mean over two draws or more.

    >>> estimate(np.array([1.0, 3.0]))
    Estimate(mean=2.0, standard_error=1.0)
    """
    # Infinite values (a loss never reached) have no spread, and numpy would warn.
    if not np.isfinite(values).all():
        return Estimate(float("inf"), float("nan"))
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)))


@dataclass(frozen=True)
class Row:
    """Records a statement put to the test.

    Args:
        statement: its name in docs/theory.md.
        claim: what is compared, in words.
        predicted: the right-hand side of ``measured relation predicted``.
        measured: the left-hand side.
        tolerance: `EXACT`, or three standard errors of a mean.
        relation: "=" unless the statement is a bound.
    """

    statement: str
    claim: str
    predicted: float
    measured: float
    tolerance: float
    relation: Relation = "="

    @property
    def error(self) -> float:
        """Return how far the measurement is on the wrong side of the prediction; 0 on the right."""
        return float(np.maximum(_gap(self.measured, self.predicted, self.relation), 0.0))

    @property
    def holds(self) -> bool:
        """Return whether the error is within the tolerance; NaN never is."""
        return bool(self.error <= self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the verdict, as JSON types."""
        return vars(self) | {"error": self.error, "holds": self.holds}


def _gap(measured: Any, predicted: Any, relation: Relation) -> Any:
    """Return by how much ``measured relation predicted`` is missed, element by element."""
    difference = measured - predicted
    return {"=": abs(difference), "<=": difference, ">=": -difference}[relation]


def exact(statement: str, claim: str, pairs: Pairs, relation: Relation = "=") -> Row:
    """Compare (predicted, measured) arrays element by element, to 1e-8; the row shows the worst."""
    right = np.concatenate([np.ravel(predicted) for predicted, _ in pairs])
    left = np.concatenate([np.ravel(measured) for _, measured in pairs])
    worst = np.nan_to_num(_gap(left, right, relation), nan=np.inf).argmax()
    return Row(statement, claim, float(right[worst]), float(left[worst]), EXACT, relation)


def sampled(
    statement: str, claim: str, predicted: float, draws: np.ndarray, relation: Relation = "="
) -> Row:
    """Compare the mean over draws, to three standard errors (and 1e-8, where nothing varies)."""
    mean, standard_error = estimate(draws)
    tolerance = STANDARD_ERRORS * standard_error + EXACT
    return Row(statement, claim, predicted, mean, tolerance, relation)


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text, a line each."""
    width = max(len(row.claim) for row in rows)
    lines = [
        f"{'':4} {'claim':<{width}}  {'measured':>12}    {'predicted':>12}  {'error':>8}"
        f"  {'allowed':>8}  verdict"
    ]
    lines += [
        f"{row.statement:<4} {row.claim:<{width}}  {row.measured:>12.6f} {row.relation:>2} "
        f"{row.predicted:>12.6f}  {row.error:>8.1e}  {row.tolerance:>8.1e}  "
        f"{'holds' if row.holds else 'BROKEN'}"
        for row in rows
    ]
    return "\n".join(lines)
