"""Cuts a preheated update by the library's own truncation in the metric of the loss."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from hrp.spectra.truncation import DAMPING, loss_truncation
from hrp_lab.theory.flow_preheating import Preheated


def metric_cut(
    update: Preheated,
    left_metric: Float[np.ndarray, "*draws R R"],
    right_metric: Float[np.ndarray, "*draws R R"],
    rank: int,
    damping: float = DAMPING,
) -> tuple[Float[np.ndarray, "*draws m rank"], Float[np.ndarray, "*draws rank n"]]:
    """Return U P and Q Vh, whose product is the cut; P and Q are `loss_truncation`'s.

    The metrics are the second moments of U^T dL/dy and of Vh x; the function names its errors.
    """
    S, left, right = (
        torch.from_numpy(np.array(array)) for array in (update.S, left_metric, right_metric)
    )
    P, Q = loss_truncation(S, left, right, rank, damping)
    return update.U @ P.numpy(), Q.numpy() @ update.Vh


def plain_cut(update: Preheated, rank: int) -> Float[np.ndarray, "*draws m n"]:
    """Return the truncated SVD of the update, the best cut in the Frobenius norm."""
    return (update.U[..., :rank] * update.S[..., None, :rank]) @ update.Vh[..., :rank, :]


def metrics_of_moments(
    update: Preheated,
    A: Float[np.ndarray, "n R"],
    B: Float[np.ndarray, "m R"],
    C: Float[np.ndarray, "R R"],
    G: Float[np.ndarray, "R R"],
    scaling: float = 1.0,
) -> tuple[Float[np.ndarray, "R R"], Float[np.ndarray, "R R"]]:
    """Return the left and the right metric of moments that were taken in the factors' own basis.

    ``C = E[z z^T]`` and ``G = E[dL/dz dL/dz^T]`` are what a hook on the output z = A^T x of
    ``lora_A`` sees. Both change basis by R x R matrices: Vh = (Vh A^+T) A^T, and U = scaling B N.
    """
    to_Vh = update.Vh @ np.linalg.pinv(A.T)
    to_U = np.linalg.pinv(scaling * B) @ update.U
    return to_U.T @ G @ to_U, to_Vh @ C @ to_Vh.T
