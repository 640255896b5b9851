"""Holds every use of a private name of PEFT, Accelerate, Transformers and TRL.

A release may rename any of them. A test lists them, each with the version that it was seen in, and
fails where one is gone, so that a new release shows at once what has to be looked at.
"""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, GradientState
from peft.tuners.lora import layer as lora
from torch import nn


def is_convolution(layer: nn.Module) -> bool:
    """Return whether ``layer`` is PEFT's LoRA of a convolution of any dimension."""
    return isinstance(layer, lora._ConvNd)


def wrap_embedding_output(layer: Any, adapter_name: str, observe: Any) -> Any:
    """Pass what ``lora_A`` of a LoRA embedding gives through ``observe``; return how to undo it."""
    embed, lora_A = layer._embed, layer.lora_embedding_A

    def observed(input_ids: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
        output = embed(input_ids, weight, *args, **kwargs)
        ours = weight.data_ptr() == lora_A[adapter_name].data_ptr()
        return observe(output) if ours else output

    layer._embed = observed
    return lambda: layer.__dict__.pop("_embed", None)


def accumulation_state() -> dict[str, Any]:
    """Return the live dict in which Accelerate keeps gradient accumulation, once a process."""
    state: dict[str, Any] = GradientState._shared_state
    return state


def accelerate_is_set_up() -> bool:
    """Return whether an Accelerator has chosen its precision in this process."""
    return bool(AcceleratorState._shared_state)


def forget_accelerate() -> None:
    """Let the next Accelerator of this process choose its own precision and accumulation."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
