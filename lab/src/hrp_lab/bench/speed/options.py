"""Switch on what makes training steps faster, and tell trainers all they need to know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel, Trainer

from hrp_lab.bench.speed.cuda_graphs import GraphedTrainer, with_few_shapes
from hrp_lab.bench.speed.padding_free import padding_free, padding_free_batch
from hrp_lab.bench.tasks import Example, Task

_KINDS = 64  # of blocks that a worker may meet: arms, ranks, dtypes
_FEW_SHAPES = 512, 128  # multiples of a batch's tokens, and of its longest row


@dataclass(frozen=True)
class Speed:
    """Says how training steps are made faster on this machine, which is no part of a run."""

    padding_free: bool = False
    torch_compile: bool = False
    cuda_graphs: bool = False

    @property
    def trainer_cls(self) -> type[Trainer]:
        """Return HF's Trainer, or the one that replays graphs."""
        return GraphedTrainer if self.cuda_graphs else Trainer

    def packs(self, task: Task) -> bool:
        """Return whether the batches of ``task`` come without padding; only causal tasks' do."""
        return self.padding_free and task.task_type == "CAUSAL_LM"

    def collator(self, task: Task) -> Callable[[list[Example]], Any]:
        """Return the task's collator or one without padding, with few shapes for graphs."""
        if self.packs(task):
            tokens, longest = _FEW_SHAPES if self.cuda_graphs else (1, 1)
            return partial(padding_free_batch, tokens_multiple=tokens, longest_multiple=longest)
        return with_few_shapes(task.collator) if self.cuda_graphs else task.collator

    @contextmanager
    def applied(self, model: nn.Module, task: Task) -> Iterator[None]:
        """Let ``model`` take the batches of `collator`, compiled if asked for, while this lasts."""
        with ExitStack() as stack:
            if self.packs(task):
                stack.enter_context(padding_free(model))
            if self.torch_compile:
                stack.enter_context(compiled_blocks(model))
            yield


@contextmanager
def compiled_blocks(model: nn.Module, backend: str = "inductor") -> Iterator[None]:
    """Run the blocks of ``model`` compiled while this lasts, unless that would take minutes.

    Steps launch fewer, larger kernels. One graph serves all blocks, shapes of batches and models of
    a kind, so a worker compiles once for each kind of adapter and preheating rank that it meets.
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
