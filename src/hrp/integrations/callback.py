"""Preheats in a callback as training begins, for tools that only take callbacks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hrp.adapters.interrupts import interrupts_allowed, interrupts_held
from hrp.adapters.layers import lora_modules
from hrp.adapters.restoring import restored_loader
from hrp.config import HRPConfig
from hrp.initialization import apply_hrp
from hrp.preheating.plan import adapted_model, checked_config, with_steps

_REMEDY = "pass the trainer, whose loss is used then: `hrp.HRPCallback(config, trainer)`"

_OWN_SFT_LOSSES = (None, "nll", "chunked_nll")
_PREFERENCE_COLUMNS = ("chosen", "rejected", "kto_", "kl_")
# Padding-free collators add these; models take them in `**kwargs`.
_PASSED_THROUGH = (
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "shift_labels",
    "num_items_in_batch",
)  # fmt: skip


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
        _check_run(args, loader.dataset)
        peft_model = adapted_model(model)
        lora_modules(peft_model, "default")
        lora = peft_model.peft_config["default"]

        class LoaderTrainer(Trainer):
            """Takes the run's own batches."""

            def get_train_dataloader(self) -> Any:
                return loader

            def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
                _check_batch(inputs, peft_model, self.label_names, self.args)
                return super().compute_loss(model, inputs, *args, **kwargs)

        args = copy.copy(args)
        args.neftune_noise_alpha = None  # the run has put its noise on already
        with interrupts_held(), restored_loader(loader), interrupts_allowed():
            apply_hrp(
                model,
                with_steps(self.config, state.max_steps, lora),
                trainer_cls=LoaderTrainer,
                args=args,
                train_dataset=loader.dataset,
            )


def _check_run(args: TrainingArguments, dataset: Any) -> None:
    """Raise ``ValueError`` where the run's loss is plainly not the model's own.

    Under DPO ``model(**batch).loss`` exists too: it would be trained on the rejected answers.
    """
    kinds = [kind for kind in type(args).__mro__ if kind.__module__.partition(".")[0] == "trl"]
    if kinds and kinds[0].__name__ != "SFTConfig":
        raise ValueError(f"`{kinds[0].__name__}` has a loss that is not the model's own; {_REMEDY}")
    loss_type = getattr(args, "loss_type", None)
    if loss_type not in _OWN_SFT_LOSSES:
        raise ValueError(f"`loss_type` {loss_type!r} is not the model's own loss; {_REMEDY}")
    columns = getattr(dataset, "column_names", None) or ()
    pairs = sorted(name for name in columns if str(name).startswith(_PREFERENCE_COLUMNS))
    if pairs:
        raise ValueError(f"columns {pairs} are for a loss that is not the model's own; {_REMEDY}")


def _check_batch(
    batch: Any, model: Any, label_names: Collection[str], args: TrainingArguments
) -> None:
    """Raise ``ValueError`` unless the model's own loss is meant by this batch.

    It must hold labels, only what the model's ``forward`` names, and no more rows than were asked
    for: trainers on pairs put both answers into one batch.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(f"batches must be mappings, got {type(batch).__name__}; {_REMEDY}")
    labels = next((batch[name] for name in label_names if name in batch), None)
    if labels is None:
        raise ValueError(
            f"a batch must hold one of {list(label_names)}, got {sorted(batch)}; {_REMEDY}"
        )
    # The class is asked, since TRL puts another `forward` on the instance.
    known = inspect.signature(type(model.get_base_model()).forward).parameters
    unknown = sorted(set(batch) - set(known) - set(_PASSED_THROUGH))
    if unknown:
        raise ValueError(f"the model does not know {unknown} of a batch; {_REMEDY}")
    if len(labels) > args.train_batch_size:
        raise ValueError(
            f"a batch must hold at most {args.train_batch_size} rows, as `args` say, got "
            f"{len(labels)}, such as two for each pair of answers; {_REMEDY}"
        )
