"""Counts the steps of the run that preheating prepares, and so those of preheating."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sized

from peft import LoraConfig
from transformers import TrainingArguments

from hrp.config import DEFAULT_SHARE, HRPConfig

CLASSIFIER_SHARE = 0.05
"""Default share for classifiers: longer preheating had lower means than none on CoLA (the log)."""

DEFAULT_STEPS = 50
"""Default number of preheating steps when only a dataloader is given."""


def of_trainer(
    config: HRPConfig, args: TrainingArguments, train_dataset: object, lora: LoraConfig
) -> HRPConfig:
    """Return ``config`` with its share of the trainer's steps as a number.

    The default share goes by the task that the adapter, ``lora``, is for.

    Raises:
        ValueError: it is a share, and how many steps the trainer takes is not known beforehand.
    """
    return _of_run(config, planned_steps(args, train_dataset), lora)


def of_loader(
    config: HRPConfig, args: TrainingArguments, loader: object, lora: LoraConfig
) -> HRPConfig:
    """Return ``config`` with its share as a number, where the trainer's dataloader is there.

    Raises:
        ValueError: see `of_trainer`.
    """
    try:
        batches = len(loader)  # type: ignore[arg-type]
    except TypeError:  # streamed
        batches = None
    return _of_run(config, _steps_over(args, batches), lora)


def _of_run(config: HRPConfig, steps: int | None, lora: LoraConfig) -> HRPConfig:
    if not config.is_share:
        return config
    if steps is None:
        given = config.preheat_steps
        raise ValueError(
            "`preheat_steps` must be a number of steps or 'auto' where the trainer's own number is "
            "not known beforehand (streamed data, or rows that it has yet to pack, and no "
            f"`max_steps`), got {'a share, the default' if given is None else given};"
            " give one of them, or set `max_steps` of the trainer"
        )
    return config.of_run(steps, default_share(lora))


def with_default_steps(config: HRPConfig, total_steps: int | None, lora: LoraConfig) -> HRPConfig:
    """Return ``config`` with a number of steps, for a loop of ``total_steps`` if they are known.

    Raises:
        ValueError: it has a share, and ``total_steps`` is not given.
    """
    if total_steps is not None:
        return config.of_run(total_steps, default_share(lora))
    if isinstance(config.preheat_steps, float):
        raise ValueError(
            "`preheat_steps` must be a number of steps or 'auto' with `dataloader` unless "
            f"`total_steps` is given, got {config.preheat_steps}; give `total_steps`, the steps of "
            "the fine-tuning that follows"
        )
    default = config.preheat_steps is None
    return dataclasses.replace(config, preheat_steps=DEFAULT_STEPS) if default else config


def default_share(lora: LoraConfig) -> float:
    """Return the default share of a run's steps, by the task that the adapter is for."""
    classifies = lora.task_type in ("SEQ_CLS", "TOKEN_CLS")
    return CLASSIFIER_SHARE if classifies else DEFAULT_SHARE


def planned_steps(args: TrainingArguments, train_dataset: object) -> int | None:
    """Return HF Trainer's steps with ``args``, as it counts them; None if not known.

    Trainers that drop rows, or draw them in groups (GRPO), take another number: there, and with
    sequence parallelism, ``max_steps`` alone makes it known.
    """
    prepared = (getattr(args, "dataset_kwargs", None) or {}).get("skip_prepare_dataset", False)
    packs = getattr(args, "packing", False) and not prepared  # TRL's trainer makes fewer rows
    if packs or not isinstance(train_dataset, Sized):
        return _steps_over(args, None)
    split = args.accelerator_config.split_batches
    together = args.train_batch_size * (1 if split else args.world_size)
    rows = len(train_dataset)
    batches = rows // together if args.dataloader_drop_last else math.ceil(rows / together)
    return _steps_over(args, batches)


def _steps_over(args: TrainingArguments, batches: int | None) -> int | None:
    """Return the optimizer steps over an epoch of so many batches, or ``max_steps``."""
    if args.max_steps > 0:
        return args.max_steps
    if batches is None:
        return None
    per_epoch = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return max(1, math.ceil(args.num_train_epochs * per_epoch))
