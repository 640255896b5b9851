"""Measures spectra: effective ranks, and how far two subspaces agree."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hrp.validation import check_choice

EffectiveRankKind = Literal["entropy", "stable", "energy"]


def effective_rank(
    S: Float[Tensor, " rank"], kind: EffectiveRankKind = "entropy", energy: float = 0.9
) -> float:
    """Return how many directions a spectrum really uses, between 1 and ``len(S)``.

    - ``"entropy"``: exp of the Shannon entropy of ``S / sum(S)`` (Roy and Vetterli 2007);
    - ``"stable"``: ``sum(S^2) / max(S)^2``, the stable rank;
    - ``"energy"``: the fewest leading values whose squares hold the share ``energy`` of the total.

    Raises:
        ValueError: unknown ``kind``, ``energy`` outside (0, 1], or no positive singular value.

    >>> round(effective_rank(torch.ones(5)), 6), effective_rank(torch.tensor([3.0, 4.0]), "stable")
    (5.0, 1.5625)
    """
    check_choice("kind", kind, get_args(EffectiveRankKind))
    if not 0 < energy <= 1:
        raise ValueError(f"`energy` must be in (0, 1], got {energy!r}")
    values = S.double()
    if not values.numel() or values.max() <= 0:
        raise ValueError("an effective rank needs a positive singular value, got none")
    if kind == "entropy":
        share = values / values.sum()
        return torch.special.entr(share).sum().exp().item()
    squares = values.square()
    if kind == "stable":
        return (squares.sum() / squares.max()).item()
    held = squares.sort(descending=True).values.cumsum(0)
    # Rounding may leave the last sum a hair under the total's share.
    reached = held >= energy * held[-1] * (1 - 1e-12)
    return float(reached.int().argmax().item() + 1)


def principal_cosines(X: Float[Tensor, "dim k"], Y: Float[Tensor, "dim k"]) -> Float[Tensor, " k"]:
    """Return the cosines of the principal angles between two column spaces, descending.

    ``X`` and ``Y`` have orthonormal columns; the cosines are the singular values of ``X^T Y``
    (Bjorck and Golub 1973).

    >>> principal_cosines(torch.eye(3)[:, :2], torch.eye(3)[:, 1:]).tolist()
    [1.0, 0.0]
    """
    return torch.linalg.svdvals(X.mT @ Y.to(X)).clamp(max=1.0)
