"""Lists every private name of PEFT, Accelerate, Transformers and TRL that HRP uses.

A release may rename any of them. A test asks `missing_names` and fails with their list, so that a
new release shows at once what has to be looked at.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from accelerate.state import AcceleratorState, GradientState
from peft.tuners.lora import layer as lora
from torch import nn


@dataclass(frozen=True)
class PrivateName:
    """Holds a private name (``module:attribute.path``), the version it was seen in, and its use."""

    path: str
    seen_in: str
    used_for: str


PRIVATE_NAMES = (
    PrivateName("peft.tuners.lora.layer:_ConvNd", "peft 0.21.2", "telling convolutions"),
    PrivateName(
        "peft.tuners.lora.layer:Embedding._embed", "peft 0.21.2", "the output of an embedding's A"
    ),
    PrivateName(
        "accelerate.state:GradientState._shared_state", "accelerate 1.15.0", "its accumulation"
    ),
    PrivateName(
        "accelerate.state:GradientState._reset_state", "accelerate 1.15.0", "leaving no trace"
    ),
    PrivateName(
        "accelerate.state:AcceleratorState._shared_state", "accelerate 1.15.0", "is there one?"
    ),
    PrivateName(
        "accelerate.state:AcceleratorState._reset_state", "accelerate 1.15.0", "leaving no trace"
    ),
)


def missing_names() -> list[PrivateName]:
    """Return the private names that the installed releases no longer have."""
    return [name for name in PRIVATE_NAMES if not _exists(name.path)]


def _exists(path: str) -> bool:
    module, _, attributes = path.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError):
        return False
    return True


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
