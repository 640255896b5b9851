"""Tells what is wrong with the parts of a spectrum that was read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64)
_ORTHONORMAL_TOLERANCE = 1e-3
# What HRP writes into the provenance, where something reads it.
_KINDS: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("config", "cost", "settings", "stopping", "versions"), (dict, "an object")),
    **dict.fromkeys(("base_model", "run", "adapter_name"), (str, "text")),
    **dict.fromkeys(("steps", "seed", "learning_rate"), (int | float, "a number")),
    **dict.fromkeys(("losses", "unreached", "without_metric"), (list | tuple, "a list")),
}


def fault_of(U: Tensor, S: Tensor, Vh: Tensor, scaling: float, *metrics: Tensor) -> str | None:
    """Return what keeps these from being a spectrum, in words; None where nothing does.

    The shapes come first, so that no product is larger than its factors: the rank is at most
    ``min(d_out, d_in)``.
    """
    parts = (U, S, Vh, *metrics)
    shapes = [tuple(part.shape) for part in parts]
    rank = S.numel()
    d_out, d_in = U.shape[0] if U.dim() else 0, Vh.shape[-1] if Vh.dim() else 0
    if shapes[:3] != [(d_out, rank), (rank,), (rank, d_in)]:
        return f"U, S and Vh must be (d_out, rank), (rank,) and (rank, d_in), got {shapes[:3]}"
    if not 1 <= rank <= min(d_out, d_in):
        return f"its rank must be from 1 to min(d_out, d_in) = {min(d_out, d_in)}, got {rank}"
    if shapes[3:] != [(rank, rank)] * len(metrics):
        return f"a metric must be ({rank}, {rank}), got {shapes[3:]}"
    if any(part.dtype not in _DTYPES for part in parts) or not math.isfinite(scaling):
        return "dtypes must be float32 or float64, scaling finite"
    if not _is_svd(U, S, Vh):
        return (
            "S must be finite, descending and non-negative, the columns of U and the rows of Vh "
            "orthonormal"
        )
    if not all(m.isfinite().all() and (m.diagonal() >= 0).all() for m in metrics):
        return "a metric must be finite, with no negative number on its diagonal"
    return None


def _is_svd(U: Tensor, S: Tensor, Vh: Tensor) -> bool:
    if not (S.isfinite().all() and (S >= 0).all() and (S.diff() <= 0).all()):
        return False
    identity = torch.eye(len(S), dtype=U.dtype, device=U.device)
    errors = [(gram - identity).abs().max() for gram in (U.mT @ U, (Vh @ Vh.mT).to(U))]
    return all(bool(error < _ORTHONORMAL_TOLERANCE) for error in errors)


def fault_of_provenance(provenance: Mapping[str, Any]) -> str | None:
    """Return what is of another kind than HRP writes, in words; None where nothing is."""
    for name, value in provenance.items():
        if name not in _KINDS or value is None:
            continue
        kind, said = _KINDS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            return f"`{name}` of the provenance must be {said}, got {type(value).__name__}"
        entries = value if isinstance(value, list | tuple) else ()
        entry_kind = int | float if name == "losses" else str
        for entry in entries:
            if not isinstance(entry, entry_kind) or isinstance(entry, bool):
                return f"`{name}` of the provenance must not hold {type(entry).__name__}"
    return None
