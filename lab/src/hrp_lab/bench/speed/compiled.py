"""Compile each of a model's repeated blocks, so that training steps launch fewer, larger kernels.

One graph serves all blocks, shapes of batches and models of a kind, so a worker compiles once for
each kind of adapter and preheating rank that it meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

_KINDS = 64  # of blocks that a worker may meet: arms, ranks, dtypes


@contextmanager
def compiled_blocks(model: nn.Module, backend: str = "inductor") -> Iterator[None]:
    """Run the blocks of ``model`` compiled while this lasts, unless that would take minutes.

    PEFT's variants of LoRA, such as DoRA, break graphs; ranks that differ from block to block, as
    EVA's do, need a graph a block. Such models run as they are.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    blocks = list(_repeated(base))
    variants = any(part.lora_variant for part in model.modules() if isinstance(part, LoraLayer))
    shapes = [{name: p.shape for name, p in block.named_parameters()} for block in blocks]
    alike = all(block_shapes == shapes[0] for block_shapes in shapes)
    if variants or not alike or not isinstance(base, PreTrainedModel):
        yield
        return
    # Without this the first block alone has an input without a gradient, and takes a graph more.
    base.enable_input_require_grads()
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    try:
        with torch._dynamo.config.patch(recompile_limit=_KINDS):
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        base.disable_input_require_grads()


def _repeated(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the members of the outermost lists of modules of one class."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len(set(map(type, child))) == 1:
            yield from child
        else:
            yield from _repeated(child)
