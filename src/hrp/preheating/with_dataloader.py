"""Preheats over a dataloader, for those who train in a loop of their own."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import parse_flag_from_env, send_to_device
from peft import LoraConfig
from torch import Tensor, nn
from transformers import get_constant_schedule_with_warmup

from hrp.adapters.compat import accelerate_is_set_up, forget_accelerate
from hrp.config import HRPConfig
from hrp.preheating.plan import with_steps
from hrp.preheating.progress import Progress
from hrp.preheating.rates import Rates, rates_of, split_groups

DEFAULT_STEPS = 50
"""Default number of preheating steps when only a dataloader is given."""

DEFAULT_LEARNING_RATE = 2e-4
"""Default learning rate when only a dataloader is given.

It errs on the slow side, because preheating that is too hot loses everything (docs/choosing.md). A
small model may want five times as much.
"""

MAX_GRAD_NORM = 1.0
"""Gradient clipping of the loop: the default of HF's Trainer."""

LossFn = Callable[[nn.Module, Any], Tensor]


@dataclasses.dataclass(frozen=True)
class DataloaderSource:
    """Holds the batches to preheat on, and what is known of the fine-tuning that follows.

    Args:
        dataloader: cycled where it is shorter than preheating.
        loss_fn: the loss of ``(model, batch)``; ``model(**batch).loss`` where it is None.
        total_steps: optimizer steps of the fine-tuning that follows, where they are known.
        learning_rate: of the fine-tuning that follows, where it is known.
    """

    dataloader: Iterable[Any]
    loss_fn: LossFn | None = None
    total_steps: int | None = None
    learning_rate: float | None = None

    def resolved(self, config: HRPConfig, lora: LoraConfig) -> tuple[HRPConfig, Rates]:
        """Return ``config`` with its number of steps, and the learning rates of preheating."""
        if config.preheat_steps is None and self.total_steps is None:
            config = dataclasses.replace(config, preheat_steps=DEFAULT_STEPS)
        config = with_steps(config, self.total_steps, lora)
        if config.learning_rate is None and self.learning_rate is None:
            default = dataclasses.replace(config, learning_rate=DEFAULT_LEARNING_RATE)
            return config, rates_of(0.0, default, lora.r)
        return config, rates_of(self.learning_rate or 0.0, config, lora.r)

    def train(self, model: nn.Module, config: HRPConfig, rates: Rates, progress: Progress) -> None:
        """Run up to ``config.step_limit`` AdamW steps, gradient norm clipped to 1.

        Batches are sent to the model's device; with several processes (``accelerate launch``) the
        loader is split between them. A bfloat16 base runs under bfloat16 autocast, as with HF
        Trainer's ``bf16=True``.
        """
        with _own_accelerator() as accelerator:
            optimizer = torch.optim.AdamW(
                [parameter for parameter in model.parameters() if parameter.requires_grad],
                lr=rates.factors,
                weight_decay=0.0,
            )
            split_groups(optimizer, model, rates)
            schedule = get_constant_schedule_with_warmup(optimizer, config.warmup_steps)
            prepared, optimizer, loader = accelerator.prepare(model, optimizer, self.dataloader)
            prepared.train()
            # Sharding engines replace the parameters, and a launcher may have moved them.
            trainable = [p for p in prepared.parameters() if p.requires_grad]
            device = trainable[0].device
            # PEFT's factors are float32: without autocast their products would be too, at rank R.
            in_half = getattr(model, "dtype", None) == torch.bfloat16
            autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_half)
            batches = itertools.islice(_cycled(loader), config.step_limit)
            progress.start(hidden=not accelerator.is_main_process)
            for step, batch in enumerate(batches, start=1):
                progress.begin_step(step)
                with autocast:
                    loss = _loss(prepared, send_to_device(batch, device), self.loss_fn)
                loss = progress.passed_over(loss, batch)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(trainable, MAX_GRAD_NORM)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                progress.record(accelerator.reduce(loss.detach(), "mean").item(), step)
                if progress.may_stop(step):
                    break


def _cycled(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield batches without end, starting the loader again where it ends."""
    for cycle in itertools.count():
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            fault = "got an empty one" if cycle == 0 else "got an iterator that cannot start again"
            raise ValueError(
                f"`dataloader` must hold at least one batch, {fault}; pass a DataLoader"
            )


def _loss(model: nn.Module, batch: Any, loss_fn: LossFn | None) -> Tensor:
    if loss_fn is None and not isinstance(batch, Mapping):
        raise TypeError(
            "`dataloader` must give mappings of the model's arguments unless `loss_fn` is given, "
            f"got batches of type {type(batch).__name__}; pass `loss_fn(model, batch)`"
        )
    loss = model(**batch).loss if loss_fn is None else loss_fn(model, batch)
    if loss is None:
        keys = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(
            f"the batch gives no loss: it must hold `labels`, got {keys}; add labels, or pass "
            "`loss_fn(model, batch)`"
        )
    return loss


@contextmanager
def _own_accelerator() -> Iterator[Accelerator]:
    """Yield an Accelerator that leaves Accelerate's process-wide state as it was.

    One process keeps the model where it is; several follow the launcher's placement.
    """
    fresh = not accelerate_is_set_up()
    processes = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1 and processes.num_processes == 1:
        raise ValueError(
            f"{launched} processes were launched, and Accelerate would let each of them preheat "
            "alone: on CPUs set ACCELERATE_USE_CPU=true, or call "
            "`accelerate.PartialState(cpu=True)` first of all"
        )
    launched_as = processes.distributed_type
    accelerator = Accelerator(device_placement=processes.num_processes > 1)
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        if fresh:  # so that the user's own Accelerator may still choose its precision
            forget_accelerate()
            processes.distributed_type = launched_as  # an engine has put its own name there
