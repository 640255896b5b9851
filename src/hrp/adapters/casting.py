"""Leaves PEFT's casts of a layer's input to autocast, which would undo them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


@contextmanager
def casts_left_to_autocast(model: nn.Module) -> Iterator[None]:
    """Keep adapter layers from casting inputs to the factors' dtype while autocast is on.

    PEFT casts bfloat16 activations up to its float32 factors, and autocast casts them down again
    before the product: the same bits with two copies more. PEFT itself leaves the cast out so on
    quantised layers. Nothing changes where autocast is off, and on layers of variants such as DoRA,
    which use the input in ways of their own.
    """
    layers = [one for one in model.modules() if isinstance(one, LoraLayer)]
    layers = [one for one in layers if not one.lora_variant]
    before = [one.cast_input_dtype_enabled for one in layers]
    hooks = [one.register_forward_pre_hook(_cast_unless_autocast) for one in layers]
    try:
        yield
    finally:
        for layer, enabled, hook in zip(layers, before, hooks, strict=True):
            hook.remove()
            layer.cast_input_dtype_enabled = enabled


def _cast_unless_autocast(layer: Any, inputs: tuple[Any, ...]) -> None:
    """Look at autocast before every pass, so that any way into the model is right."""
    if inputs and isinstance(inputs[0], Tensor):
        layer.cast_input_dtype_enabled = not torch.is_autocast_enabled(inputs[0].device.type)
