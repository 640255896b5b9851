"""Fine-tuning through the HF Trainer, quietly, with what it cost."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hrp.adapters.casting import casts_left_to_autocast
from hrp_lab.bench.speed.compiled import compiled_blocks
from hrp_lab.bench.speed.cuda_graphs import GraphedTrainer, with_few_shapes
from hrp_lab.bench.speed.padding_free import PaddingFreeCollator, padding_free
from hrp_lab.bench.tasks import Example, Task

DEFAULTS: dict[str, Any] = {"lr_scheduler_type": "cosine", "weight_decay": 0.0, "logging_steps": 10}
_FEW_SHAPES = 512, 128  # multiples of a batch's tokens, and of its longest row


@dataclass(frozen=True)
class Plan:
    """What a trainer is told: data, length, rate, seed, batch and further arguments.

    ``padding_free`` leaves padding out of a causal task's batches, see `speed.padding_free`;
    ``torch_compile`` compiles blocks, see `speed.compiled`; ``cuda_graphs`` replays steps, see
    `hrp_lab.bench.speed.cuda_graphs`.
    """

    task: Task
    steps: int
    learning_rate: float
    seed: int
    batch_size: int
    training: Mapping[str, Any]
    padding_free: bool = False
    torch_compile: bool = False
    cuda_graphs: bool = False

    @property
    def packs(self) -> bool:
        """Whether batches come without padding: those of causal tasks, where asked for."""
        return self.padding_free and self.task.task_type == "CAUSAL_LM"

    @property
    def trainer_cls(self) -> type[Trainer]:
        """HF Trainer, as it is or replaying graphs."""
        return GraphedTrainer if self.cuda_graphs else Trainer

    def collator(self) -> Callable[[list[Example]], Any]:
        """The task's, or one without padding; with few shapes of batches where graphs are made."""
        if self.packs:
            return PaddingFreeCollator(*(_FEW_SHAPES if self.cuda_graphs else ()))
        return with_few_shapes(self.task.collator) if self.cuda_graphs else self.task.collator


@dataclass(frozen=True)
class Trained:
    """Losses by step, optimizer steps, tokens without padding, and seconds of training."""

    losses: tuple[tuple[int, float], ...]
    steps: int
    tokens: int
    wall_s: float


class CountingCollator:
    """Collates, and counts the tokens of each batch, padding left out."""

    def __init__(self, collator: Callable[[list[Example]], Any]) -> None:
        self._collator = collator
        self._tokens: list[int] = []

    def __call__(self, rows: list[Example]) -> Any:
        """Collate ``rows``."""
        self._tokens.append(sum(len(row["input_ids"]) for row in rows))
        return self._collator(rows)

    def tokens(self, batches: int) -> int:
        """Tokens of the first ``batches`` batches; loaders fetch a batch more than is used."""
        return sum(self._tokens[:batches])


class FiniteLoss(TrainerCallback):
    """Ends a run whose loss is NaN or infinite instead of training on."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Raise ``FloatingPointError`` naming the step."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} at step {state.global_step}")


@contextmanager
def ready_for(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Within, ``model`` takes the batches of ``plan``, compiled where it says so."""
    with ExitStack() as stack:
        if plan.packs:
            stack.enter_context(padding_free(model))
        if plan.torch_compile:
            stack.enter_context(compiled_blocks(model))
        yield


@contextmanager
def trainer_arguments(plan: Plan) -> Iterator[tuple[dict[str, Any], CountingCollator]]:
    """Keyword arguments of a ``Trainer``, and the collator that counts."""
    collator = CountingCollator(plan.collator())
    with tempfile.TemporaryDirectory(prefix="hrp-bench-") as scratch:
        args = TrainingArguments(
            **DEFAULTS
            | {
                "output_dir": scratch,
                "max_steps": plan.steps,
                "per_device_train_batch_size": plan.batch_size,
                "learning_rate": plan.learning_rate,
                "seed": plan.seed,
                "bf16": torch.cuda.is_available(),
                "use_cpu": not torch.cuda.is_available(),
                "logging_nan_inf_filter": False,  # it would wait for the GPU at every step
                "remove_unused_columns": False,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "log_level": "error",
            }
            | dict(plan.training)
        )
        yield {"args": args, "train_dataset": plan.task.train, "data_collator": collator}, collator


def fine_tune(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train ``model`` in place.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    with trainer_arguments(plan) as (kwargs, collator):
        trainer = plan.trainer_cls(
            model=model,
            optimizers=(optimizer, None),
            callbacks=[FiniteLoss(), *callbacks],
            **kwargs,
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        try:
            with casts_left_to_autocast(model), ready_for(model, plan):
                trainer.train()
            synchronise()
        finally:
            trainer.accelerator.free_memory()
        state = trainer.state
        accumulated = kwargs["args"].gradient_accumulation_steps
    losses = [(row["step"], float(row["loss"])) for row in state.log_history if "loss" in row]
    tokens = collator.tokens(state.global_step * accumulated)
    return Trained(tuple(losses), state.global_step, tokens, time.perf_counter() - began)


def synchronise() -> None:
    """Wait until the GPU is done, so that wall times mean something."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
