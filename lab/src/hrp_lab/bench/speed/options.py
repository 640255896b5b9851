"""Switch on what makes training steps faster, and tell trainers all they need to know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import Trainer

from hrp_lab.bench.speed.compiled import compiled_blocks
from hrp_lab.bench.speed.cuda_graphs import GraphedTrainer, with_few_shapes
from hrp_lab.bench.speed.padding_free import PaddingFreeCollator, padding_free
from hrp_lab.bench.tasks import Example, Task

_FEW_SHAPES = 512, 128  # multiples of a batch's tokens, and of its longest row


@dataclass(frozen=True)
class Speed:
    """Says how training steps are made faster on this machine, which is no part of a run.

    Args:
        padding_free: whether to leave padding out of causal tasks' batches, see `padding_free`.
        torch_compile: whether to compile the model's blocks, see `compiled`.
        cuda_graphs: whether to replay captured training steps, see `cuda_graphs`.
    """

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
            return PaddingFreeCollator(*(_FEW_SHAPES if self.cuda_graphs else ()))
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
