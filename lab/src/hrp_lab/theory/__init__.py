"""Theory lab: matrix factorisation under gradient flow, and every statement of HRP.md checked.

``hrp theory check`` runs all statements, ``hrp theory figure1`` redraws the paper's Figure 1,
``hrp theory sweep`` shows the final loss against preheat rank and steps. Derivations and sources
are in docs/theory.md. Needs numpy, scipy and torch; matplotlib only for the figures.
"""

from __future__ import annotations

from hrp.theory.descent import Descent, descend
from hrp.theory.flow import SolverError, Trajectory, gradient_flow
from hrp.theory.preheating import (
    Preheated,
    preheat_again,
    preheat_flow,
    preheat_to_limit,
    spectrum_of,
)
from hrp.theory.problem import (
    MatrixFactorization,
    flat_target,
    geometric_target,
    power_law_target,
    target_of_spectrum,
)
from hrp.theory.starts import Start, random_start, start_at, wise_start

__all__ = [
    "Descent",
    "MatrixFactorization",
    "Preheated",
    "SolverError",
    "Start",
    "Trajectory",
    "descend",
    "flat_target",
    "geometric_target",
    "gradient_flow",
    "power_law_target",
    "preheat_again",
    "preheat_flow",
    "preheat_to_limit",
    "random_start",
    "spectrum_of",
    "start_at",
    "target_of_spectrum",
    "wise_start",
]
