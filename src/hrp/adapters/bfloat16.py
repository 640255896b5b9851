"""Tells whether this CPU computes in bfloat16 itself; where it does not, training there crawls."""

from __future__ import annotations

import warnings

import torch
from torch import nn


def has_native_bfloat16() -> bool:
    """Return whether the CPU has instructions for bfloat16 (AVX-512, AMX, ARM's BF16 or SVE).

    A laptop's processor with AVX2 alone has none: PyTorch then converts every number, and a step
    takes ten times as long as in float32.
    """
    if hasattr(torch.cpu, "get_capabilities"):
        instructions = torch.cpu.get_capabilities()
        return any("bf16" in name and bool(value) for name, value in instructions.items())
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # older PyTorch


def warn_of_slow_bfloat16(model: nn.Module) -> None:
    """Warn where ``model`` has bfloat16 weights on a CPU that cannot compute in it."""
    slow = any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters())
    if slow and not has_native_bfloat16():
        warnings.warn(
            "the base model is in bfloat16, in which this CPU cannot compute: a step takes many "
            "times as long as in float32; load it with dtype=torch.float32",
            stacklevel=3,
        )
