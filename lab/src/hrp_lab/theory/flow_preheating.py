"""Preheats at a high rank in the lab; directions and cuts are taken by the library's own code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from hrp.spectra.factorization import factored_svd
from hrp.spectra.truncation import DAMPING, loss_truncation
from hrp_lab.theory.flow import Start, TrainFactors, gradient_flow, start_at
from hrp_lab.theory.problem import OTHER, Direction, MatrixFactorization
from hrp_lab.theory.start_statements import limit_loss


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
        """Return the leading right ("A") or left ("B") singular vectors, as columns."""
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

    def plain_cut(self, rank: int) -> Float[np.ndarray, "*draws m n"]:
        """Return the truncated SVD, the best cut in the Frobenius norm."""
        return (self.U[..., :rank] * self.S[..., None, :rank]) @ self.Vh[..., :rank, :]

    def metric_cut(
        self,
        left_metric: Float[np.ndarray, "*draws R R"],
        right_metric: Float[np.ndarray, "*draws R R"],
        rank: int,
        damping: float = DAMPING,
    ) -> tuple[Float[np.ndarray, "*draws m rank"], Float[np.ndarray, "*draws rank n"]]:
        """Return U P and Q Vh, whose product is the cut; P and Q are `loss_truncation`'s.

        The metrics are the second moments of U^T dL/dy and of Vh x.
        """
        arrays = (self.S, left_metric, right_metric)
        S, left, right = (torch.from_numpy(np.array(array)) for array in arrays)
        P, Q = loss_truncation(S, left, right, rank, damping)
        return self.U @ P.numpy(), Q.numpy() @ self.Vh


def spectrum_of(
    A: Float[np.ndarray, "*draws n preheat_rank"], B: Float[np.ndarray, "*draws m preheat_rank"]
) -> Preheated:
    """Return the SVD of B A^T by `hrp.spectra.factorization.factored_svd`, in float64."""
    lora_A, lora_B = (torch.from_numpy(np.array(factor)) for factor in (A.swapaxes(-1, -2), B))
    U, S, Vh = factored_svd(lora_A, lora_B)
    return Preheated(U.numpy(), S.numpy(), Vh.numpy())


def preheat_to_limit(
    problem: MatrixFactorization,
    frozen_columns: Float[np.ndarray, "*draws dimension preheat_rank"],
    frozen: Direction = "A",
) -> Preheated:
    """Run asymmetric preheating to its end: B = M A (A^T A)^-1 (P1, t -> infinity)."""
    other = problem.seen_from(frozen).M @ np.linalg.pinv(frozen_columns).swapaxes(-1, -2)
    factors = (frozen_columns, other) if frozen == "A" else (other, frozen_columns)
    return spectrum_of(*factors)


def preheat_again(
    problem: MatrixFactorization, first: Preheated, frozen: Direction = "A"
) -> Preheated:
    """Run a second half-sweep: freeze what the first one trained, train what it froze, to the end.

    With ``frozen="A"`` the first time: B = Q, orthonormal columns of the range found, gives the
    product Q Q^T M, the randomised SVD (P10, **derived**; Halko, Martinsson and Tropp 2011).
    """
    now = OTHER[frozen]
    return preheat_to_limit(problem, first.directions(first.S.shape[-1], now), now)


def preheat_flow(
    problem: MatrixFactorization,
    start: Start,
    time: float,
    train_factors: TrainFactors = "both",
    tolerance: float = 1e-9,
) -> Preheated:
    """Preheat by `gradient_flow` from ``start``, of the preheat rank, for ``time`` > 0."""
    run = gradient_flow(problem, start, np.array([time]), train_factors, tolerance)
    return spectrum_of(*run.factors_at(0))
