"""Training steps with each of a model's repeated blocks compiled: fewer, larger kernels.

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
    """Within, the blocks of ``model`` run compiled; variants of LoRA such as DoRA as they are.

    PEFT's variants break graphs, so that compiling them would take minutes.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, PreTrainedModel) or _has_variants(model):
        yield
        return
    # The first block's input would be the only one without a gradient: a graph of its own.
    base.enable_input_require_grads()
    blocks = list(_repeated(base))
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    try:
        with torch._dynamo.config.patch(recompile_limit=_KINDS):
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None
        base.disable_input_require_grads()


def _has_variants(model: nn.Module) -> bool:
    return any(one.lora_variant for one in model.modules() if isinstance(one, LoraLayer))


def _repeated(model: nn.Module) -> Iterator[nn.Module]:
    """Members of the outermost lists of modules of one class."""
    for child in model.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len(set(map(type, child))) == 1:
            yield from child
        else:
            yield from _repeated(child)
