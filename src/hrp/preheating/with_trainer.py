"""Preheats with HF's Trainer or a subclass, the very one that will fine-tune or one like it."""

from __future__ import annotations

import copy
import dataclasses
import math
from contextlib import suppress
from functools import partial
from typing import Any

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from hrp.adapters.interrupts import interrupts_held
from hrp.adapters.restoring import restored_globals, restored_trainer
from hrp.config import HRPConfig
from hrp.preheating.checkpoints import (
    Checkpoints,
    CompletionMarker,
    check_same_run,
    checkpointing_arguments,
    last_complete,
)
from hrp.preheating.plan import with_steps
from hrp.preheating.progress import Progress
from hrp.preheating.rates import Rates, rates_of, take_both_rates

# Preheating takes none of these: it does not evaluate, and callbacks stop, save or report.
_DROPPED_ARGUMENTS = ("callbacks", "eval_dataset", "compute_metrics")
_OVERRIDES = {
    "lr_scheduler_type": "constant_with_warmup",
    "lr_scheduler_kwargs": {},
    "eval_on_start": False,
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": [],
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "resume_from_checkpoint": None,
}


def built_trainer(
    trainer_cls: type[Trainer],
    arguments: dict[str, Any],
    model: PeftModel,
    config: HRPConfig,
    scratch: str,
) -> Trainer:
    """Build a trainer of the real run's arguments that evaluates, saves and reports nothing."""
    arguments = {k: v for k, v in arguments.items() if k not in _DROPPED_ARGUMENTS}
    arguments["args"] = _preheating_arguments(arguments["args"], config, scratch)
    return trainer_cls(model=model, **arguments)


def of_trainer(config: HRPConfig, trainer: Trainer, lora: LoraConfig) -> HRPConfig:
    """Return ``config`` with its share of the trainer's steps as a number.

    Raises:
        ValueError: it is a share, and the trainer's data are streamed, without ``max_steps``.
    """
    if not config.is_share:
        return config
    args, steps = trainer.args, None
    if args.max_steps > 0:
        steps = args.max_steps
    else:
        with interrupts_held(), restored_trainer(trainer), restored_globals():
            loader = trainer.get_train_dataloader()
            with suppress(TypeError):  # of streamed data
                per_epoch = max(1, math.ceil(len(loader) / args.gradient_accumulation_steps))
                steps = max(1, math.ceil(args.num_train_epochs * per_epoch))
    return with_steps(config, steps, lora)


@dataclasses.dataclass(frozen=True)
class TrainerSource:
    """Takes steps with a trainer that is built and not yet started.

    Its loss, collator, prepared data, precision, accumulation and distribution are used as they
    are. An optimizer that it was built with holds other parameters, and is set aside: preheating
    makes one by ``args.optim``, at the rate of the one set aside.

    Args:
        trainer: HF's ``Trainer`` or a subclass.
        scratch: a folder that is removed after preheating.
        checkpoints: where to save what an interrupted preheating goes on from; None: nowhere.
    """

    trainer: Any
    scratch: str
    checkpoints: Checkpoints | None = None

    def resolved(self, config: HRPConfig, lora: LoraConfig) -> tuple[HRPConfig, Rates]:
        """Return ``config`` with its number of steps, and the learning rates of preheating."""
        trainer = self.trainer
        rate = trainer.args.learning_rate
        if trainer.optimizer is not None and not trainer.is_in_train:
            group = trainer.optimizer.param_groups[0]
            rate = float(group.get("initial_lr", group["lr"]))
        elif given := getattr(trainer, "optimizer_cls_and_kwargs", None):
            rate = given[1].get("lr", rate)
        config = of_trainer(config, trainer, lora)
        return config, rates_of(rate, config, lora.r)

    def train(self, model: nn.Module, config: HRPConfig, rates: Rates, progress: Progress) -> None:
        """Run up to ``config.step_limit`` steps of the trainer, which is not put back here.

        It gets preheating's copy of ``args``, callbacks, optimizer and schedule. The generators are
        seeded anew, as HF's Trainer does when it is built. With checkpoints, training goes on from
        the last complete one there is.
        """
        trainer = self.trainer
        args = _preheating_arguments(trainer.args, config, self.scratch)
        args.max_steps, args.warmup_steps = config.step_limit, config.warmup_steps
        args.learning_rate = rates.factors
        callbacks: list[TrainerCallback] = [DefaultFlowCallback(), progress]
        resumed: dict[str, str] = {}
        if self.checkpoints is not None:
            checkpointing_arguments(args, self.checkpoints)
            run = config.to_dict() | {"learning_rate": args.learning_rate}
            callbacks.append(CompletionMarker(progress.stopping, run, progress.moments))
            checkpoint = last_complete(self.checkpoints.folder, before=config.step_limit)
            if checkpoint is not None:
                check_same_run(checkpoint, run)
                resumed["resume_from_checkpoint"] = str(checkpoint)
        self._make_ready(args, callbacks)
        take_both_rates(trainer, rates)
        training_step = trainer.training_step
        trainer.training_step = lambda model, inputs, *args, **kwargs: progress.passed_over(
            training_step(model, inputs, *args, **kwargs), inputs
        )
        set_seed(config.seed)
        # Within its run a tool's own `train` has set the stage, which it may not do twice.
        train = partial(Trainer.train, trainer) if trainer.is_in_train else trainer.train
        try:
            train(**resumed)
        finally:
            trainer.optimizer = None
            trainer.accelerator.free_memory()

    def _make_ready(self, args: TrainingArguments, callbacks: list[TrainerCallback]) -> None:
        """Put the trainer at the beginning of a run, with other arguments and callbacks."""
        trainer = self.trainer
        if given := getattr(trainer, "optimizer_cls_and_kwargs", None):
            settings = {**given[1], "lr": args.learning_rate}
            trainer.optimizer_cls_and_kwargs = given[0], settings
        trainer.args = args
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.model_wrapped = trainer.model
        trainer.state, trainer.control = TrainerState(), TrainerControl()
        trainer.callback_handler = CallbackHandler(
            callbacks, trainer.model, trainer.processing_class, None, None
        )
        if trainer.is_in_train:  # its noise on the embeddings is on already
            trainer.neftune_noise_alpha = None


def _preheating_arguments(
    args: TrainingArguments, config: HRPConfig, output_dir: str
) -> TrainingArguments:
    """Copy ``args`` for preheating: schedule, seed and bookkeeping change here."""
    changed = copy.copy(args)
    for name, value in vars(changed).items():
        if isinstance(value, dict | list):
            setattr(changed, name, copy.copy(value))
    seeds = {"output_dir": output_dir, "seed": config.seed, "data_seed": config.seed}
    for name, value in (_OVERRIDES | seeds).items():
        setattr(changed, name, copy.copy(value))
    return changed
