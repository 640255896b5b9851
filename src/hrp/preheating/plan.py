"""Checks what `preheat` is given, and counts preheating's steps, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hrp.config import DEFAULT_SHARE, HRPConfig
from hrp.validation import check_integer, check_positive

CLASSIFIER_SHARE = 0.05
"""Default share for classifiers: longer preheating had lower means than none on CoLA (the log)."""


def checked_config(config: HRPConfig | None) -> HRPConfig:
    """Return ``config``, or the default where it is None; raises ``TypeError`` on anything else."""
    if config is None:
        return HRPConfig()
    if not isinstance(config, HRPConfig):
        raise TypeError(f"`config` must be an `hrp.HRPConfig`, got {type(config).__name__}")
    return config


def adapted_model(model: Any) -> Any:
    """Return the PeftModel inside a built trainer, a compiled or a DDP-wrapped model."""
    if isinstance(model, Trainer):
        model = model.model
    if isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model


def check_data(model: Any, data: Mapping[str, Any], trainer_kwargs: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless steps can come from just one of three sources.

    Args:
        model: a built trainer is a source in itself.
        data: the other arguments of `preheat` about data, by name, also those not given.
        trainer_kwargs: arguments of the trainer of ``trainer_cls``.
    """
    given = {name for name, value in {**data, **trainer_kwargs}.items() if value is not None}
    if isinstance(model, Trainer):
        if beside := sorted(given - {"checkpoints"}):
            raise TypeError(f"{beside} go with a model; a built trainer has its own data")
        _check_built(model)
        return
    if len(given & {"dataloader", "trainer_cls"}) != 1:
        raise ValueError(
            "exactly one of `dataloader` and `trainer_cls` must be given, got "
            f"{'both' if 'dataloader' in given else 'neither'}"
        )
    if "trainer_cls" in given:
        if beside := sorted(given & {"loss_fn", "total_steps", "learning_rate"}):
            raise ValueError(
                f"{beside} go with `dataloader`; a trainer has its own loss and `args`"
            )
        _check_trainer_arguments(data["trainer_cls"], trainer_kwargs)
        return
    if "checkpoints" in given:
        raise ValueError("`checkpoints` go with `trainer_cls`; a dataloader cannot be resumed")
    if trainer_kwargs:
        raise TypeError(f"{sorted(trainer_kwargs)} go with `trainer_cls`, not `dataloader`")
    _check_not_empty("dataloader", data["dataloader"])
    if "total_steps" in given:
        check_integer("total_steps", data["total_steps"], minimum=1)
    if "learning_rate" in given:
        check_positive("learning_rate", data["learning_rate"])


def _check_built(trainer: Trainer) -> None:
    if trainer.model_init is not None:
        raise ValueError(
            "a trainer with `model_init` makes its model anew when it starts, without what HRP "
            "has put into it; build it with `model`"
        )
    if steps := trainer.state.global_step:
        raise ValueError(
            f"the trainer must not have been started, got one that has taken {steps} steps; "
            "call HRP before `train()`"
        )
    _check_not_empty("train_dataset", trainer.train_dataset)


def _check_trainer_arguments(trainer_cls: object, trainer_kwargs: Mapping[str, Any]) -> None:
    if not (isinstance(trainer_cls, type) and issubclass(trainer_cls, Trainer)):
        raise TypeError(
            "`trainer_cls` must be transformers.Trainer or a subclass (Seq2SeqTrainer, TRL's "
            f"SFTTrainer, ...), got {trainer_cls!r}; pass the class, not an instance"
        )
    args, rows = trainer_kwargs.get("args"), trainer_kwargs.get("train_dataset")
    if not isinstance(args, TrainingArguments):
        kind = type(args).__name__
        raise TypeError(f"`args` must be the TrainingArguments of the real run, got {kind}")
    if isinstance(rows, DataLoader):
        raise TypeError("`train_dataset` must be a data set, got a DataLoader: give `dataloader`")
    _check_not_empty("train_dataset", rows)
    # HF's trainers notice wrong values of these late, or never.
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        check_integer(f"args.{name}", getattr(args, name), minimum=1)


def _check_not_empty(name: str, data: object) -> None:
    if isinstance(data, Sized) and len(data) == 0:
        raise ValueError(f"`{name}` must hold at least one batch, got an empty one")


def with_steps(config: HRPConfig, total_steps: int | None, lora: LoraConfig) -> HRPConfig:
    """Return ``config`` with its share of a run of ``total_steps`` as a number.

    The default share goes by the task that the adapter, ``lora``, is for.

    Raises:
        ValueError: it has a share, and ``total_steps`` is None, as it is not known beforehand.
    """
    if not config.is_share:
        return config
    if total_steps is None:
        given = config.preheat_steps
        raise ValueError(
            "`preheat_steps` must be a number of steps or 'auto' where the run's own number is not "
            f"known beforehand, got {'a share, the default' if given is None else given}; give one "
            "of them, or the run's: `max_steps` of a trainer (of streamed data), `total_steps` "
            "with `dataloader`"
        )
    classifies = lora.task_type in ("SEQ_CLS", "TOKEN_CLS")
    return config.of_run(total_steps, CLASSIFIER_SHARE if classifies else DEFAULT_SHARE)
