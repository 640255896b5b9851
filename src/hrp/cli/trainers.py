"""Makes a command's trainer, TRL's or HF's, and looks at its data and its reporters."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from hrp.cli.failures import UsageError
from hrp.cli.input_checks import check_targets, mistakes_told
from hrp.config import HRPConfig

LOSS_NAME = "preheat/loss"
_REPORTERS = "transformers.integrations"

logger = logging.getLogger(__name__)


def built(request: Any, build: Callable[[Any], Any]) -> Any:
    """Make the trainer; raises ``UsageError`` for unknown target modules and too few rows."""
    flags = request.model
    task = f"--task {request.finetune.task}" if hasattr(request, "finetune") else "hrp sft"
    with mistakes_told(flags.lora_target_modules, task, flags.model_name_or_path):
        trainer = build(request)
    base = trainer.model.get_base_model()
    check_targets(flags.lora_target_modules, base)
    check_targets(flags.lora_exclude_modules, base, "lora_exclude_modules")
    check_enough(trainer)
    trainer.create_model_card = lambda *args, **kwargs: None  # HRP's stays, see `hrp.cli.modelcard`
    return trainer


def check_enough(trainer: Any) -> None:
    """Raise ``UsageError`` if the data give no step."""
    if not isinstance(trainer.train_dataset, Sized):
        return  # streamed: its length is not known
    rows, args = len(trainer.train_dataset), trainer.args
    least = args.train_batch_size * args.world_size if args.dataloader_drop_last else 1
    if rows < least:
        raise UsageError(
            f"the data give {rows} training rows, and one step needs {least}; give more data, "
            "raise `--max_length`, or lower `--per_device_train_batch_size`"
        )


def warn_of_repeats(trainer: Any, config: HRPConfig) -> None:
    """Say so if preheating sees the data repeatedly; a share of fine-tuning is less than that."""
    if config.is_share or not isinstance(trainer.train_dataset, Sized):
        return
    rows, args = len(trainer.train_dataset), trainer.args
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    wanted = config.step_limit * per_step
    if wanted > rows:
        logger.warning(
            "preheating draws %d examples from %d rows, each about %.1f times; lower "
            "`--preheat_steps` if that is more than fine-tuning does",
            wanted,
            rows,
            wanted / rows,
        )


@contextmanager
def losses_reported(trainer: Any) -> Iterator[None]:
    """Within, pass the losses of preheating with ``trainer`` on to its reporters."""
    callbacks = trainer.callback_handler.callbacks
    reporters = [c for c in callbacks if type(c).__module__.startswith(_REPORTERS)]
    args, state, log = trainer.args, copy.copy(trainer.state), trainer.log
    state.is_world_process_zero = trainer.is_world_process_zero()

    def report(event: str, **facts: Any) -> None:
        for reporter in reporters:
            getattr(reporter, event)(args, state, trainer.control, model=trainer.model, **facts)

    def log_and_report(logs: dict[str, float], *others: Any, **named: Any) -> None:
        log(logs, *others, **named)
        if "loss" in logs:
            state.global_step = trainer.state.global_step
            report("on_log", logs={LOSS_NAME: logs["loss"]})

    report("on_train_begin")  # TensorBoard's learns its folder there
    trainer.log = log_and_report
    try:
        yield
    finally:
        del trainer.log
