"""Checks flags before a model is loaded, and the target modules right after."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hrp.cli.failures import UsageError
from hrp.files import read_object
from hrp.validation import check_integer, check_positive

_CONFIGS = ("config.json", "tokenizer_config.json", "tokenizer.json")


def check_model(name: str) -> None:
    """Raise ``UsageError`` for a model folder that is not there, or whose configs are broken.

    HF would take the one for a hub id, and tell nothing of the other.
    """
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise UsageError(f"`--model_name_or_path` '{name}' is no folder")
    for path in (Path(name) / config for config in _CONFIGS):
        if path.is_file() and read_object(path) is None:
            raise UsageError(f"'{path}' must be a JSON object; get the model's files again")


def check_lora(model: Any) -> None:
    """Raise ``ValueError`` on LoRA's numbers out of range; ``model`` has them as ``lora_*``."""
    check_integer("lora_r", model.lora_r, minimum=1)
    check_positive("lora_alpha", model.lora_alpha)
    if not 0 <= model.lora_dropout < 1:
        raise UsageError(f"`lora_dropout` must be in [0, 1), got {model.lora_dropout}")


def check_training(training: Any) -> None:
    """Raise ``ValueError`` on numbers with which no step can be taken."""
    check_positive("learning_rate", training.learning_rate)
    check_integer("per_device_train_batch_size", training.per_device_train_batch_size, minimum=1)
    check_integer("gradient_accumulation_steps", training.gradient_accumulation_steps, minimum=1)
    if training.max_steps <= 0:
        check_positive("num_train_epochs", training.num_train_epochs)
    if getattr(training, "max_length", None) is not None:
        check_integer("max_length", training.max_length, minimum=1)


def as_names(targets: list[str] | str | None) -> list[str] | str | None:
    """Make a list of names again where TRL made a string, which PEFT holds against whole paths."""
    if isinstance(targets, str) and targets != "all-linear" and re.fullmatch(r"[\w.]+", targets):
        return [targets]
    return targets


_SUCH = "give such as q_proj v_proj"


@contextmanager
def mistakes_told(targets: list[str] | str | None, task: str, model: str) -> Iterator[None]:
    """Say which flag it is where PEFT knows no target module, or HF no such task for the model."""
    try:
        yield
    except re.error as error:
        raise UsageError(
            f"`--lora_target_modules` must be names or a regular expression, got {targets!r} "
            f"({error}); {_SUCH}, or all-linear"
        ) from error
    except ValueError as error:
        if "not found in the base model" in str(error):
            raise UsageError(
                f"`--lora_target_modules` must name modules of the base model, got {targets!r}; "
                f"{_SUCH}, or all-linear"
            ) from error
        if "Unrecognized configuration class" in str(error):
            raise UsageError(
                f"`{task}` is for another kind of model than '{model}'; give the task of its kind"
            ) from error
        raise


def check_targets(
    targets: list[str] | str | None, model: Any, flag: str = "lora_target_modules"
) -> None:
    """Raise ``UsageError`` for a target that is no module of ``model``: PEFT passes over it."""
    modules = [name for name, _ in model.named_modules()]
    for target in targets if isinstance(targets, list) else ():
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            near = difflib.get_close_matches(target, {n.rpartition(".")[2] for n in modules}, n=1)
            raise UsageError(
                f"`--{flag}` must name modules of the base model, got {target!r}; "
                + (f"did you mean {near[0]}?" if near else _SUCH)
            )
