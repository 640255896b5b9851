"""Singular value decompositions of LoRA updates, computed from the factors alone.

Pure functions and plain data: this module knows torch, and nothing of PEFT or transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

EffectiveRankKind = Literal["entropy", "stable", "energy"]
Side = Literal["U", "Vh"]


def factored_svd(
    lora_A: Float[Tensor, "*batch rank d_in"],
    lora_B: Float[Tensor, "*batch d_out rank"],
    scaling: float = 1.0,
) -> tuple[
    Float[Tensor, "*batch d_out k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k d_in"]
]:
    """Thin SVD of ``scaling * lora_B @ lora_A`` without ever forming the product.

    With ``lora_B = Q_B R_B`` and ``lora_A^T = Q_A R_A``, the SVD of the small core
    ``R_B R_A^T = U' S V'^T`` gives ``U = Q_B U'`` and ``V = Q_A V'``: O((d_out + d_in) R^2) time
    and O((d_out + d_in) R) memory (HRP.md, "The SVD, never of a full matrix").

    Computed in float32, or float64 when a factor is float64; on the device of the factors.
    ``k = min(rank, d_in, d_out)``; columns of ``U`` and rows of ``Vh`` are orthonormal even where
    the factors have dependent columns, ``S`` is descending and non-negative.

    >>> A = torch.tensor([[1.0, 0.0], [0.0, 2.0]]); B = torch.eye(2)
    >>> factored_svd(A, B, scaling=3.0)[1].tolist()
    [6.0, 3.0]
    """
    dtype = torch.promote_types(torch.promote_types(lora_A.dtype, lora_B.dtype), torch.float32)
    Q_B, R_B = torch.linalg.qr(lora_B.to(dtype))
    Q_A, R_A = torch.linalg.qr(lora_A.to(dtype).mT)
    U, S, Vh = torch.linalg.svd(R_B @ R_A.mT, full_matrices=False)
    return Q_B @ U, S * abs(scaling), _signed(Vh @ Q_A.mT, scaling)


def _signed(Vh: Tensor, scaling: float) -> Tensor:
    return -Vh if scaling < 0 else Vh
