"""The two ways to run preheating's optimizer steps: the user's own HF Trainer, or a dataloader.

Both train whatever parameters of ``model`` require gradient and return the loss of every step.
"""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hrp.config import HRPConfig
from hrp.errors import NonFiniteLossError, PreheatingError
from hrp.preheating.checkpoints import (
    Checkpoints,
    CompletionMarker,
    check_same_run,
    checkpointing_arguments,
    keeping_frozen,
    last_complete,
)
from hrp.preheating.stopping import SubspaceStopping
from hrp.preheating.trainer_arguments import preheating_arguments, resumable_settings

DEFAULT_LEARNING_RATE = 2e-4
"""Of preheating with a bare dataloader, where fine-tuning's is not known: rather slow than too hot.

A small model may want five times as much (HRP.md: 1e-3 the best of 3e-4, 1e-3, 3e-3), and what is
too hot loses everything (docs/choosing.md).
"""

MAX_GRAD_NORM = 1.0
"""Gradient clipping of the dataloader loop: HF Trainer's own default."""

LossFn = Callable[[nn.Module, Any], Tensor]

# Not wanted while preheating: there is no evaluation, and callbacks stop, save or report.
_DROPPED_TRAINER_ARGUMENTS = ("callbacks", "eval_dataset", "compute_metrics")


def train_with_trainer(
    model: nn.Module,
    config: HRPConfig,
    trainer_cls: Any,
    trainer_kwargs: dict[str, Any],
    stopping: SubspaceStopping | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[float]:
    """Run up to ``config.step_limit`` steps of the user's own trainer; returns the loss per step.

    The user's loss, collator, precision, accumulation and distribution are kept. ``args`` is
    copied, with a constant learning rate and without evaluation, saving or reporting. With
    ``checkpoints``, training goes on from the last complete one there is.
    """
    recorder = _StepRecorder(config, stopping)
    kept = {k: v for k, v in trainer_kwargs.items() if k not in _DROPPED_TRAINER_ARGUMENTS}
    resume_from = None
    callbacks: list[TrainerCallback] = [recorder]
    with tempfile.TemporaryDirectory(prefix="hrp-preheating-") as scratch:
        kept["args"] = preheating_arguments(kept["args"], config, scratch)
        if checkpoints is not None:
            checkpointing_arguments(kept["args"], checkpoints)
            trainer_cls = keeping_frozen(trainer_cls)
            run = resumable_settings(config, kept["args"])
            callbacks.append(CompletionMarker(stopping, run))
            resume_from = last_complete(checkpoints.folder, before=config.step_limit)
            if resume_from is not None:
                check_same_run(resume_from, run)
        trainer = trainer_cls(model=model, callbacks=callbacks, **kept)
        for printing in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(printing)
        try:
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        finally:
            recorder.close()
            trainer.accelerator.free_memory()
    return _checked_length(recorder.losses, config, stopping)


def train_with_dataloader(
    model: nn.Module,
    config: HRPConfig,
    dataloader: Iterable[Any],
    loss_fn: LossFn | None,
    learning_rate: float,
    stopping: SubspaceStopping | None = None,
) -> list[float]:
    """Run up to ``config.step_limit`` AdamW steps over ``dataloader``; returns the loss per step.

    The loader is cycled where it is shorter than the steps. Batches are sent to the model's
    device; with several processes (``accelerate launch``) the loader is split between them. A
    bfloat16 base runs under bfloat16 autocast, as with HF Trainer's ``bf16=True``.
    """
    losses: list[float] = []
    trainable = [p for p in model.parameters() if p.requires_grad]
    with _own_accelerator() as accelerator:
        optimizer = torch.optim.AdamW(trainable, lr=learning_rate, weight_decay=0.0)
        prepared, optimizer, loader = accelerator.prepare(model, optimizer, dataloader)
        prepared.train()
        # Sharding engines replace the parameters, and a launcher may have moved them.
        trainable = [p for p in prepared.parameters() if p.requires_grad]
        batches = itertools.islice(_cycled(loader), config.step_limit)
        hidden = not accelerator.is_main_process
        bar = tqdm(batches, "Preheating", config.step_limit, leave=False, disable=hidden)
        for step, batch in enumerate(bar, start=1):
            batch = send_to_device(batch, trainable[0].device)
            with _autocast(model, trainable[0].device):
                loss = _loss(prepared, batch, loss_fn)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trainable, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(accelerator.reduce(loss.detach(), "mean").item())
            check_finite(losses[-1], step)
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            if stopping is not None and stopping.update(step):
                break
    return _checked_length(losses, config, stopping)


def check_finite(loss: float, step: int) -> None:
    """Raise `NonFiniteLossError` naming ``step`` unless ``loss`` is finite."""
    if not math.isfinite(loss):
        raise NonFiniteLossError(
            f"the loss is {loss} at preheating step {step}; lower `learning_rate` of the "
            "HRPConfig, or look for an empty or overflowing batch there"
        )


def _checked_length(
    losses: list[float], config: HRPConfig, stopping: SubspaceStopping | None
) -> list[float]:
    settled = stopping is not None and stopping.settled
    if len(losses) < config.step_limit and not settled:
        raise PreheatingError(
            f"training ended after {len(losses)} of {config.step_limit} preheating steps; give "
            "more data or lower `preheat_steps`"
        )
    return losses


def _cycled(loader: Iterable[Any]) -> Iterator[Any]:
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


def _autocast(model: nn.Module, device: torch.device) -> torch.autocast:
    """PEFT's factors are float32: without autocast their products would be too, at rank R."""
    enabled = getattr(model, "dtype", None) == torch.bfloat16
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


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
    fresh = not AcceleratorState._shared_state
    processes = PartialState()
    launched_as = processes.distributed_type
    accelerator = Accelerator(device_placement=processes.num_processes > 1)
    try:
        yield accelerator
    finally:
        accelerator.free_memory()
        if fresh:  # so that the user's own Accelerator may still choose its precision
            AcceleratorState._reset_state()
            GradientState._reset_state()
            processes.distributed_type = launched_as  # an engine has put its own name there


def _check_rate(optimizer: Any, asked: float | None) -> None:
    """Raise ``ValueError`` where a trainer's own optimizer passes over the rate asked for."""
    groups = getattr(optimizer, "param_groups", None)
    if asked is None or not groups:
        return
    # A trainer's own schedule may begin at 0; it keeps the rate that it scales.
    rates = sorted({float(group.get("initial_lr", group["lr"])) for group in groups})
    if not any(math.isclose(rate, asked) for rate in rates):
        raise ValueError(
            f"`learning_rate` of the HRPConfig must be the optimizer's, got {asked:g} where the "
            f"trainer's own optimizer has {rates}; set it there and leave `learning_rate` None"
        )


class _StepRecorder(TrainerCallback):
    """Records and checks the loss of each step, shows one progress bar, and stops when told."""

    def __init__(self, config: HRPConfig, stopping: SubspaceStopping | None) -> None:
        self.losses: list[float] = []
        self._config = config
        self._stopping = stopping
        self._bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        _check_rate(optimizer, self._config.learning_rate)
        hidden = args.disable_tqdm or not state.is_world_process_zero
        # What was trained before an interruption is in the checkpoint's history.
        self.losses = [float(entry["loss"]) for entry in state.log_history if "loss" in entry]
        self._bar = tqdm(
            total=self._config.step_limit,
            initial=len(self.losses),
            desc="Preheating",
            disable=hidden,
            leave=False,
        )

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        if self._stopping is not None and self._stopping.update(state.global_step):
            control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        if "loss" not in (logs or {}):
            return
        self.losses.append(float(logs["loss"]))
        check_finite(self.losses[-1], state.global_step)
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{self.losses[-1]:.4f}")

    def close(self) -> None:
        """Close the progress bar, also where training ended early."""
        if self._bar is not None:
            self._bar.close()
