"""Checks the user's trainer arguments and adapts a copy of them for preheating."""

from __future__ import annotations

import copy
from collections.abc import Sized
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hrp.config import HRPConfig
from hrp.validation import check_integer

_REFUSED_TRAINER_ARGUMENTS = {
    "model": "preheating passes its own; give the PeftModel as `model` of `preheat`",
    "model_init": "the model is the PeftModel given as `model`",
    "peft_config": "`model` already carries its LoRA adapter",
    "optimizers": (
        "an optimizer made beforehand holds the parameters of the real adapter; pass "
        "`optimizer_cls_and_kwargs`, or set `optim` in `args`"
    ),
}


def check_trainer_arguments(trainer_cls: object, trainer_kwargs: dict[str, Any]) -> None:
    """Raise ``TypeError`` or ``ValueError`` on arguments that preheating cannot use."""
    if not (isinstance(trainer_cls, type) and issubclass(trainer_cls, Trainer)):
        raise TypeError(
            "`trainer_cls` must be transformers.Trainer or a subclass (Seq2SeqTrainer, TRL's "
            f"SFTTrainer, ...), got {trainer_cls!r}; pass the class, not an instance"
        )
    for name, remedy in _REFUSED_TRAINER_ARGUMENTS.items():
        if trainer_kwargs.get(name) is not None:
            raise ValueError(f"`{name}` cannot be given with `trainer_cls`: {remedy}")
    args = trainer_kwargs.get("args")
    if not isinstance(args, TrainingArguments):
        kind = type(args).__name__
        raise TypeError(f"`args` must be the TrainingArguments of the real run, got {kind}")
    if trainer_kwargs.get("train_dataset") is None:
        raise ValueError("`train_dataset` must be given with `trainer_cls`, got None")
    if isinstance(trainer_kwargs["train_dataset"], DataLoader):
        raise TypeError("`train_dataset` must be a data set, got a DataLoader: give `dataloader`")
    check_not_empty("train_dataset", trainer_kwargs["train_dataset"])
    # HF's trainers notice wrong values of these late, or never.
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        check_integer(f"args.{name}", getattr(args, name), minimum=1)


def check_not_empty(name: str, data: object) -> None:
    """Raise ``ValueError`` if ``data`` has a length and it is 0."""
    if isinstance(data, Sized) and len(data) == 0:
        raise ValueError(f"`{name}` must hold at least one batch, got an empty one")


def own_rate(trainer_kwargs: dict[str, Any]) -> float:
    """Return the learning rate of the real run."""
    rate: float = trainer_kwargs["args"].learning_rate
    if given := trainer_kwargs.get("optimizer_cls_and_kwargs"):
        rate = given[1].get("lr", rate)
    return rate


def with_rate(trainer_kwargs: dict[str, Any], rate: float) -> dict[str, Any]:
    """Return a trainer's arguments with another learning rate; what was given stays as it is."""
    args = copy.copy(trainer_kwargs["args"])
    args.learning_rate = rate
    changed = trainer_kwargs | {"args": args}
    if given := trainer_kwargs.get("optimizer_cls_and_kwargs"):
        optimizer_cls, settings = given
        changed["optimizer_cls_and_kwargs"] = optimizer_cls, {**settings, "lr": rate}
    return changed


def preheating_arguments(
    args: TrainingArguments, config: HRPConfig, output_dir: str
) -> TrainingArguments:
    """Copy ``args`` for preheating: its length, schedule, seed and bookkeeping change here."""
    changed = copy.copy(args)
    for name, value in vars(changed).items():
        if isinstance(value, dict | list):
            setattr(changed, name, copy.copy(value))
    overrides: dict[str, Any] = {
        "output_dir": output_dir,
        "max_steps": config.step_limit,
        "lr_scheduler_type": "constant_with_warmup",
        "lr_scheduler_kwargs": {},
        "warmup_steps": config.warmup_steps,
        "eval_on_start": False,
        "seed": config.seed,
        "data_seed": config.seed,
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
    for name, value in overrides.items():
        setattr(changed, name, value)
    return changed
