"""Makes TRL's and HF's trainers as preheating and fine-tuning need them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any

from transformers import Seq2SeqTrainer, Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from hrp.cli.failures import UsageError
from hrp.cli.input_checks import check_targets, mistakes_told
from hrp.config import HRPConfig

LOSS_NAME = "preheat/loss"
_REPORTERS = "transformers.integrations"

logger = logging.getLogger(__name__)


class _HRPCard:
    """Keeps HRP's README.md (`hrp.cli.modelcard`), also when the run is pushed to the hub."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave the card that is there."""


class HRPSFTTrainer(_HRPCard, SFTTrainer):
    """Trains language models as TRL does."""


class HRPSeq2SeqTrainer(_HRPCard, Seq2SeqTrainer):
    """Trains encoder-decoders as HF does."""


class HRPClassifierTrainer(_HRPCard, Trainer):
    """Trains classifiers as HF does, and also saves what the classes are called."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter, and, but in a checkpoint, the base's config with ``id2label``."""
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and not folder.name.startswith(PREFIX_CHECKPOINT_DIR):
            model = self.accelerator.unwrap_model(self.model)
            model.get_base_model().config.save_pretrained(folder)


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
    return trainer


def preheating(trainer: Any) -> dict[str, Any]:
    """Return arguments of `hrp.preheat` that train on the data ``trainer`` has prepared."""
    settings = {
        "trainer_cls": type(trainer),
        "args": trainer.args,
        "train_dataset": trainer.train_dataset,
        "processing_class": trainer.processing_class,
    }
    if not isinstance(trainer, SFTTrainer):
        return settings | {"data_collator": trainer.data_collator}
    args = copy.copy(trainer.args)
    args.model_init_kwargs = None  # the model is there
    args.chat_template_path = None  # likewise its template
    args.dataset_kwargs = {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True}
    return settings | {"args": args}


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


def reporting(trainer_cls: Any, real: Any) -> Any:
    """Subclass a trainer so that its loss goes to the real run's reporters, under its own name."""

    class Reporting(trainer_cls):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            _report(real, "on_train_begin", 0)  # TensorBoard's learns its folder there
            return super().train(*args, **kwargs)

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log(logs, *args, **kwargs)
            if "loss" in logs:
                _report(real, "on_log", self.state.global_step, logs={LOSS_NAME: logs["loss"]})

    return Reporting


def _report(trainer: Any, event: str, step: int, **facts: Any) -> None:
    """Call the reporters (``report_to``) of ``trainer``, as at ``step`` of its training."""
    state = copy.copy(trainer.state)
    state.global_step = step
    state.is_world_process_zero = trainer.is_world_process_zero()
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith(_REPORTERS):
            getattr(callback, event)(
                trainer.args, state, trainer.control, model=trainer.model, **facts
            )
