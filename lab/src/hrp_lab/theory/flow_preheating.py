"""Preheats at a high rank in the lab, and takes the directions with the library's own SVD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float

from hrp.spectra.factorization import factored_svd
from hrp.validation import check_choice, check_positive
from hrp_lab.theory.flow import TrainFactors, gradient_flow
from hrp_lab.theory.flow_starts import Start, start_at
from hrp_lab.theory.predict import limit_loss
from hrp_lab.theory.problem import Direction, MatrixFactorization


@dataclass(frozen=True, eq=False)
class Preheated:
    """Holds the thin SVD of every draw's preheated product B A^T.

    Args:
        U: (draws, m, preheat_rank).
        S: (draws, preheat_rank), descending.
        Vh: (draws, preheat_rank, n).
    """

    U: Float[np.ndarray, "*draws m preheat_rank"]
    S: Float[np.ndarray, "*draws preheat_rank"]
    Vh: Float[np.ndarray, "*draws preheat_rank n"]

    def directions(self, rank: int, direction: Direction) -> Float[np.ndarray, "*draws dim rank"]:
        """Return the leading right ("A") or left ("B") singular vectors, as columns.

        Raises ``ValueError`` if ``rank`` is above the preheat rank.
        """
        check_choice("direction", direction, get_args(Direction))
        if not 1 <= rank <= self.S.shape[-1]:
            raise ValueError(
                f"`rank` must be between 1 and `preheat_rank` = {self.S.shape[-1]}, got {rank}; "
                "raise `preheat_rank`"
            )
        if direction == "B":
            return self.U[..., :rank]
        return self.Vh[..., :rank, :].swapaxes(-1, -2)

    def start(self, problem: MatrixFactorization, rank: int, direction: Direction) -> Start:
        """Return the real adapter's start: `directions` in the carrier, zero elsewhere."""
        return start_at(problem, self.directions(rank, direction), direction)

    def limit_loss(
        self, problem: MatrixFactorization, rank: int, direction: Direction
    ) -> Float[np.ndarray, "*draws"]:
        """Return the loss that asymmetric LoRA reaches from `start` (P4, P5)."""
        return limit_loss(problem, self.directions(rank, direction), direction)


def spectrum_of(
    A: Float[np.ndarray, "*draws n preheat_rank"], B: Float[np.ndarray, "*draws m preheat_rank"]
) -> Preheated:
    """Return the SVD of B A^T by `hrp.spectra.factorization.factored_svd`, in float64."""
    lora_A = torch.from_numpy(np.array(A.swapaxes(-1, -2), dtype=np.float64))
    U, S, Vh = factored_svd(lora_A, torch.from_numpy(np.array(B, dtype=np.float64)))
    return Preheated(U.numpy(), S.numpy(), Vh.numpy())


def preheat_to_limit(
    problem: MatrixFactorization,
    frozen_columns: Float[np.ndarray, "*draws dimension preheat_rank"],
    frozen: Direction = "A",
) -> Preheated:
    """Run asymmetric preheating to its end: B = M A (A^T A)^-1 (P1, t -> infinity)."""
    start = start_at(problem, frozen_columns, frozen)
    other = problem.seen_from(frozen).M @ np.linalg.pinv(frozen_columns).swapaxes(-1, -2)
    return spectrum_of(start.A, other) if frozen == "A" else spectrum_of(other, start.B)


def preheat_again(
    problem: MatrixFactorization, first: Preheated, frozen: Direction = "A"
) -> Preheated:
    """Run a second half-sweep: freeze what the first one trained, train what it froze, to the end.

    With ``frozen="A"`` the first time: B = Q, orthonormal columns of the range found, gives the
    product Q Q^T M, the randomised SVD (P10, **derived**; Halko, Martinsson and Tropp 2011).
    """
    if frozen == "A":
        return preheat_to_limit(problem, first.U, "B")
    return preheat_to_limit(problem, first.Vh.swapaxes(-1, -2), "A")


def preheat_flow(
    problem: MatrixFactorization,
    start: Start,
    time: float,
    train_factors: TrainFactors = "both",
    tolerance: float = 1e-9,
) -> Preheated:
    """Preheat by gradient flow from ``start``, of the preheat rank, for ``time`` > 0.

    ``train_factors`` and ``tolerance`` as in `flow.gradient_flow`, which also names the
    errors.
    """
    check_positive("time", time)
    run = gradient_flow(
        problem, start, np.array([time]), train_factors, tolerance, keep_factors=True
    )
    return spectrum_of(*run.factors_at(0))
