"""Preheats with the user's own HF Trainer, made anew from its class and its arguments."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from hrp.config import HRPConfig
from hrp.preheating.checkpoints import (
    Checkpoints,
    CompletionMarker,
    check_same_run,
    checkpointing_arguments,
    last_complete,
)
from hrp.preheating.length import of_trainer
from hrp.preheating.progress import Progress
from hrp.preheating.rates import Rates, rates_of, take_both_rates
from hrp.preheating.trainer_arguments import (
    check_trainer_arguments,
    own_rate,
    preheating_arguments,
    with_rate,
)

# Preheating takes none of these: it does not evaluate, and callbacks stop, save or report.
_DROPPED_ARGUMENTS = ("callbacks", "eval_dataset", "compute_metrics")


@dataclasses.dataclass(frozen=True)
class TrainerSource:
    """Holds the trainer of the real run, and where preheating keeps its checkpoints.

    Args:
        trainer_cls: ``transformers.Trainer`` or a subclass.
        arguments: keyword arguments of the real run, ``args`` and ``train_dataset`` among them.
        checkpoints: where to save what an interrupted preheating goes on from; None: nowhere.
    """

    trainer_cls: type[Trainer]
    arguments: dict[str, Any]
    checkpoints: Checkpoints | None = None

    def __post_init__(self) -> None:
        check_trainer_arguments(self.trainer_cls, self.arguments)

    @property
    def args(self) -> TrainingArguments:
        """Return the ``TrainingArguments`` of the real run."""
        args: TrainingArguments = self.arguments["args"]
        return args

    def with_steps(self, config: HRPConfig, lora: LoraConfig) -> HRPConfig:
        """Return ``config`` with its number of steps; see `length.of_trainer`."""
        return of_trainer(config, self.args, self.arguments["train_dataset"], lora)

    def rates(self, config: HRPConfig, rank: int) -> Rates:
        """Return the learning rates of preheating, ``rank`` being that of the real adapter."""
        return rates_of(own_rate(self.arguments), config, rank)

    def train(self, model: nn.Module, config: HRPConfig, rates: Rates, progress: Progress) -> None:
        """Run up to ``config.step_limit`` steps of the user's own trainer.

        The user's loss, collator, precision, accumulation and distribution are kept. ``args`` is
        copied, with a constant learning rate after a warm-up and without evaluation, saving or
        reporting. With checkpoints, training goes on from the last complete one there is.
        """
        arguments = with_rate(self.arguments, rates.factors)
        arguments = {k: v for k, v in arguments.items() if k not in _DROPPED_ARGUMENTS}
        callbacks: list[TrainerCallback] = [StepsToProgress(config, progress)]
        resume_from = None
        with tempfile.TemporaryDirectory(prefix="hrp-preheating-") as scratch:
            args = preheating_arguments(arguments["args"], config, scratch)
            if self.checkpoints is not None:
                checkpointing_arguments(args, self.checkpoints)
                run = config.to_dict() | {"learning_rate": args.learning_rate}
                callbacks.append(CompletionMarker(progress.stopping, run, progress.moments))
                resume_from = last_complete(self.checkpoints.folder, before=config.step_limit)
                if resume_from is not None:
                    check_same_run(resume_from, run)
            arguments["args"] = args
            trainer = self.trainer_cls(model=model, callbacks=callbacks, **arguments)
            take_both_rates(trainer, rates)
            progress.empty_batches.watch(trainer)
            for printing in (ProgressCallback, PrinterCallback):
                trainer.remove_callback(printing)
            try:
                trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
            finally:
                trainer.accelerator.free_memory()


class StepsToProgress(TrainerCallback):
    """Passes the trainer's steps on to `Progress`."""

    def __init__(self, config: HRPConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress

    @property
    def observing(self) -> bool:
        """Return whether hooks observe this step, so that it must run, and not be replayed."""
        return self._progress.moments.observing

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Check the optimizer's rate, and open the bar."""
        _check_rate(optimizer, self._config.learning_rate)
        # What was trained before an interruption is in the checkpoint's history.
        done = [float(entry["loss"]) for entry in state.log_history if _is_step(entry)]
        self._progress.start(done, hidden=args.disable_tqdm or not state.is_world_process_zero)

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Say which step begins."""
        self._progress.begin_step(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Stop the trainer once the subspaces have settled."""
        if self._progress.may_stop(state.global_step):
            control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Take the loss of a step."""
        if _is_step(logs or {}):
            self._progress.record(float(logs["loss"]), state.global_step)


def _is_step(logs: dict[str, Any]) -> bool:
    """Return whether a training step logged ``logs``; trainers may log another ``loss`` too."""
    return "loss" in logs and "learning_rate" in logs


def _check_rate(optimizer: Any, asked: float | None) -> None:
    """Raise ``ValueError`` where a trainer's own optimizer passes over the rate asked for."""
    groups = getattr(optimizer, "param_groups", None)
    if asked is None or not groups:
        return
    # A trainer's own schedule may begin at 0; `initial_lr` is the rate that it scales.
    rates = sorted({float(group.get("initial_lr", group["lr"])) for group in groups})
    if not any(math.isclose(rate, asked) for rate in rates):
        raise ValueError(
            f"`learning_rate` of the HRPConfig must be the optimizer's, got {asked:g} where the "
            f"trainer's own optimizer has {rates}; set it there and leave `learning_rate` None"
        )
