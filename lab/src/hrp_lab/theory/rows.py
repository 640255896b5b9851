"""Defines the rows of ``hrp-lab theory check``: prediction, measurement and verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hrp_lab.theory.sampling import Estimate, estimate

Relation = Literal["=", "<=", ">="]
Pairs = list[tuple[np.ndarray, np.ndarray]]
"""(predicted, measured), an array each."""

EXACT = 1e-8
STANDARD_ERRORS = 3.0


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
        difference = self.measured - self.predicted
        wrong = {"=": abs(difference), "<=": max(0.0, difference), ">=": max(0.0, -difference)}
        return wrong[self.relation]

    @property
    def holds(self) -> bool:
        """Return whether the error is within the tolerance; NaN never is."""
        return bool(self.error <= self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields and the verdict, as JSON types."""
        return vars(self) | {"error": self.error, "holds": self.holds}


def exact(
    statement: str,
    claim: str,
    pairs: Pairs,
    relation: Relation = "=",
) -> Row:
    """Compare (predicted, measured) arrays element by element, to 1e-8; the row shows the worst."""
    right = np.concatenate([np.ravel(predicted) for predicted, _ in pairs])
    left = np.concatenate([np.ravel(measured) for _, measured in pairs])
    gap = {"=": np.abs(left - right), "<=": left - right, ">=": right - left}[relation]
    worst = np.nan_to_num(gap, nan=np.inf).argmax()
    return Row(statement, claim, float(right[worst]), float(left[worst]), EXACT, relation)


def sampled(
    statement: str, claim: str, predicted: float, draws: np.ndarray, relation: Relation = "="
) -> Row:
    """Compare the mean over draws, to three standard errors (and 1e-8, where nothing varies)."""
    measured: Estimate = estimate(draws)
    tolerance = STANDARD_ERRORS * measured.standard_error + EXACT
    return Row(statement, claim, predicted, measured.mean, tolerance, relation)


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text, a line each."""
    width = max(len(row.claim) for row in rows)
    head = (
        f"{'':4} {'claim':<{width}}  {'measured':>12}    {'predicted':>12}  {'error':>8}"
        f"  {'allowed':>8}  verdict"
    )
    return "\n".join([head, *(_line(row, width) for row in rows)])


def _line(row: Row, width: int) -> str:
    return (
        f"{row.statement:<4} {row.claim:<{width}}  {row.measured:>12.6f} {row.relation:>2} "
        f"{row.predicted:>12.6f}  {row.error:>8.1e}  {row.tolerance:>8.1e}  "
        f"{'holds' if row.holds else 'BROKEN'}"
    )
