"""Preheats in a callback as training begins, for tools that only take callbacks."""

from __future__ import annotations

import copy
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hrp.adapters.interrupts import interrupts_allowed, interrupts_held
from hrp.adapters.layers import lora_modules
from hrp.adapters.restoring import restored_loader
from hrp.config import HRPConfig
from hrp.initialization import apply_hrp
from hrp.integrations.own_loss import check_args, check_batch, check_columns
from hrp.preheating.plan import adapted_model, checked_config, with_steps


class HRPCallback(TrainerCallback):
    """Preheats and starts the adapter in ``on_train_begin`` of a run at step 0, not on resume.

    The optimizer that the run has made by then keeps its parameters: they are written in place.

    With ``trainer``, as in ``trainer.add_callback(hrp.HRPCallback(config, trainer))``, this is
    `apply_hrp` of that trainer: its own loss and data. Without it preheating takes the model's own
    loss on the run's dataloader, in the loader's own order, with the accumulation, precision and
    clipping of ``args``. Its steps are a share of ``state.max_steps`` and its rate follows from
    ``args``. A loss that is plainly not the model's own (DPO and its like) is refused then; a loss
    function of the trainer's own cannot be seen from here, so pass the trainer.

    Args:
        config: None means `HRPConfig()`.
        trainer: the trainer that this callback is added to.
    """

    def __init__(self, config: HRPConfig | None = None, trainer: Trainer | None = None) -> None:
        self.config = checked_config(config)
        self.trainer = trainer
        self._started: Any = None  # a run that begins again, with smaller batches say, goes on

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Preheat and start the adapter, unless the run goes on from a checkpoint.

        Raises:
            ValueError: no trainer was given, and the loss is not the model's own; see `apply_hrp`.
        """
        if self.trainer is not None:
            model = self.trainer.model
        if state.global_step > 0 or self._started is model:
            return
        if self.trainer is not None:
            apply_hrp(self.trainer, self.config)
        else:
            self._apply_to_loader(args, state, model, train_dataloader)
        self._started = model

    def _apply_to_loader(
        self, args: TrainingArguments, state: TrainerState, model: Any, loader: Any
    ) -> None:
        check_args(args)
        check_columns(loader.dataset)
        peft_model = adapted_model(model)
        lora_modules(peft_model, "default")
        lora = peft_model.peft_config["default"]
        args = copy.copy(args)
        args.neftune_noise_alpha = None  # the run has put its noise on already
        with interrupts_held(), restored_loader(loader), interrupts_allowed():
            apply_hrp(
                model,
                with_steps(self.config, state.max_steps, lora),
                trainer_cls=_loader_trainer(loader),
                args=args,
                train_dataset=loader.dataset,
            )


def _loader_trainer(loader: Any) -> type[Trainer]:
    """Return a plain HF Trainer that takes its batches from a prepared dataloader."""

    class LoaderTrainer(Trainer):
        def get_train_dataloader(self) -> Any:
            return loader

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            check_batch(inputs, adapted_model(self.model), self.label_names, self.args)
            return super().compute_loss(model, inputs, *args, **kwargs)

    return LoaderTrainer
