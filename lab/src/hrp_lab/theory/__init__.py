"""The theory lab checks every statement of docs/theory.md on matrix factorisation.

``hrp-lab theory check`` runs all statements, ``figure1`` redraws the paper's Figure 1, ``sweep``
shows the final loss against preheat rank and steps, and ``truncation`` the loss right after the cut
to the real rank. The lab needs numpy, scipy and torch; matplotlib only for the figures.
"""

from __future__ import annotations

from hrp_lab.theory.descent import Descent, descend
from hrp_lab.theory.flow import SolverError, Trajectory, gradient_flow
from hrp_lab.theory.flow_preheating import (
    Preheated,
    preheat_again,
    preheat_flow,
    preheat_to_limit,
    spectrum_of,
)
from hrp_lab.theory.flow_starts import Start, random_start, start_at, wise_start
from hrp_lab.theory.problem import (
    MatrixFactorization,
    flat_target,
    geometric_target,
    power_law_target,
    target_of_spectrum,
)

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
