"""Says what engines that shard parameters allow, and makes whole factors of their shards.

FSDP2 keeps parameters as ``DTensor``, DeepSpeed ZeRO-3 as empty ones with attributes of its own.
Both are read and written here; nothing else needs to know of them.
"""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

# Accelerate's own switches, which `accelerate launch` and TrainingArguments set.
_SWITCHES = {"FSDP": "ACCELERATE_USE_FSDP", "DeepSpeed": "ACCELERATE_USE_DEEPSPEED"}
_TRUE = ("true", "1")


def check_engine(args: Any, spend_model: bool) -> bool:
    """Return whether an engine will shard the parameters for good, which DDP does not.

    ``args`` are the ``TrainingArguments``, if there are any.

    Raises:
        ValueError: there is one, and the model must not be spent: neither FSDP nor DeepSpeed can
            be undone to leave the model as it was, nor runs two trainers in one process. Or it
            is FSDP1, whose flat parameters hide the factors.
    """
    engine = next(
        (
            name
            for name, switch in _SWITCHES.items()
            if getattr(args, name.lower(), None) or os.environ.get(switch, "").lower() in _TRUE
        ),
        None,
    )
    if engine is None:
        return False
    if not spend_model:
        raise ValueError(
            f"{engine} shards the model's parameters for good, so preheating cannot run in the "
            "process that fine-tunes; use two launches: in the first launch preheat without "
            f"{engine} (one GPU or DDP), or under it with `spend_model=True`, and "
            "`spectrum.save(folder)` on rank 0; in the second one call "
            "`initialize_lora_hrp_weights(model, Spectrum.load(folder))` before the trainer is made"
        )
    in_args = getattr(args, "fsdp", None) and (args.fsdp_config or {}).get("version", 2)
    if engine == "FSDP" and int(in_args or os.environ.get("FSDP_VERSION", "1")) < 2:
        raise ValueError(
            "preheating under FSDP needs version 2, got version 1; set `fsdp_version: 2` in "
            "Accelerate's config, or `fsdp_config={'version': 2}` in the TrainingArguments"
        )
    return True


def is_sharded(parameter: Tensor) -> bool:
    """Return whether this process holds only a part of the parameter."""
    return isinstance(parameter, DTensor) or _is_zero3(parameter)


def whole(parameter: Tensor) -> Tensor:
    """Return the full value of a parameter: its own memory where it is not sharded.

    Where it is, a copy, gathered from all ranks, which must all call this.
    """
    if isinstance(parameter, DTensor):
        return cast(DTensor, parameter.detach()).full_tensor()
    if _is_zero3(parameter):
        with _gathered(parameter):
            return parameter.detach().clone()
    return parameter.detach()


@torch.no_grad()
def scatter(parameter: Tensor, value: Tensor) -> None:
    """Give each rank its shard of ``value``, as rank 0 has it; nothing where all share `whole`."""
    if isinstance(parameter, DTensor):
        sharded = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(sharded)
    elif _is_zero3(parameter):
        with _gathered(parameter, modifier_rank=0):
            parameter.copy_(value)


def _is_zero3(parameter: Tensor) -> bool:
    return hasattr(parameter, "ds_id") and hasattr(parameter, "ds_shape")


def _gathered(parameter: Tensor, modifier_rank: int | None = None) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=modifier_rank)
