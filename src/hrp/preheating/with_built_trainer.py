"""Preheats with the very trainer that will fine-tune, built and not yet started."""

from __future__ import annotations

import dataclasses
import tempfile
from functools import partial
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from hrp.adapters.interrupts import interrupts_allowed, interrupts_held
from hrp.adapters.restoring import restored_rng
from hrp.config import HRPConfig
from hrp.preheating.length import of_loader
from hrp.preheating.progress import Progress
from hrp.preheating.rates import Rates, rates_of, take_both_rates
from hrp.preheating.restored_trainer import restored_trainer
from hrp.preheating.trainer_arguments import (
    check_not_empty,
    own_rate,
    preheating_arguments,
    with_rate,
)
from hrp.preheating.with_trainer import StepsToProgress


@dataclasses.dataclass(frozen=True)
class BuiltTrainerSource:
    """Holds a trainer that was built for the fine-tuning that follows.

    Its loss, collator, prepared data, precision, accumulation and distribution are used as they
    are. An optimizer that it was built with holds other parameters, and is set aside: preheating
    makes one by ``args.optim``, at the rate of the one set aside.

    Args:
        trainer: HF's ``Trainer`` or a subclass, before its first step.
    """

    trainer: Trainer

    def __post_init__(self) -> None:
        if self.trainer.model_init is not None:
            raise ValueError(
                "a trainer with `model_init` makes its model anew when it starts, without what HRP "
                "has put into it; build it with `model`"
            )
        if steps := self.trainer.state.global_step:
            raise ValueError(
                f"the trainer must not have been started, got one that has taken {steps} steps; "
                "call HRP before `train()`"
            )
        check_not_empty("train_dataset", self.trainer.train_dataset)

    @property
    def args(self) -> TrainingArguments:
        """Return the ``TrainingArguments`` of the trainer."""
        args: TrainingArguments = self.trainer.args
        return args

    @property
    def _arguments(self) -> dict[str, Any]:
        given = getattr(self.trainer, "optimizer_cls_and_kwargs", None)
        return {"args": self.args, "optimizer_cls_and_kwargs": given}

    def with_steps(self, config: HRPConfig, lora: LoraConfig) -> HRPConfig:
        """Return ``config`` with its number of steps, by the trainer's own dataloader."""
        if not config.is_share:
            return config
        with interrupts_held(), restored_trainer(self.trainer), restored_rng():
            return of_loader(config, self.args, self.trainer.get_train_dataloader(), lora)

    def rates(self, config: HRPConfig, rank: int) -> Rates:
        """Return the learning rates of preheating, ``rank`` being that of the real adapter."""
        own = own_rate(self._arguments)
        optimizer = self.trainer.optimizer
        if optimizer is not None and not self.trainer.is_in_train:
            group = optimizer.param_groups[0]
            own = float(group.get("initial_lr", group["lr"]))
        return rates_of(own, config, rank)

    def train(self, model: nn.Module, config: HRPConfig, rates: Rates, progress: Progress) -> None:
        """Run up to ``config.step_limit`` steps of the trainer, then put the trainer back.

        It gets preheating's copy of ``args``, callbacks, optimizer and schedule. The generators are
        seeded anew, as HF's Trainer does when it is built.
        """
        trainer: Any = self.trainer
        settings = with_rate(self._arguments, rates.factors)
        with (
            interrupts_held(),
            restored_trainer(trainer),
            tempfile.TemporaryDirectory(prefix="hrp-preheating-") as scratch,
        ):
            trainer.args = preheating_arguments(settings["args"], config, scratch)
            trainer.optimizer_cls_and_kwargs = settings["optimizer_cls_and_kwargs"]
            trainer.optimizer = trainer.lr_scheduler = None
            trainer.model_wrapped = trainer.model
            trainer.state, trainer.control = TrainerState(), TrainerControl()
            callbacks = [DefaultFlowCallback(), StepsToProgress(config, progress)]
            trainer.callback_handler = CallbackHandler(
                callbacks, trainer.model, trainer.processing_class, None, None
            )
            if trainer.is_in_train:  # its noise on the embeddings is on already
                trainer.neftune_noise_alpha = None
            take_both_rates(trainer, rates)
            progress.empty_batches.watch(trainer)
            set_seed(config.seed)
            # Within its run a tool's own `train` has set the stage, which it may not do twice.
            train = partial(Trainer.train, trainer) if trainer.is_in_train else trainer.train
            with interrupts_allowed():
                train()
