"""Tells a run whose loss is the model's own from DPO and its like, by what a callback can see.

Under DPO ``model(**batch).loss`` exists too: it would be trained on the rejected answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from transformers import TrainingArguments

REMEDY = "pass the trainer, whose loss is used then: `hrp.HRPCallback(config, trainer)`"

_OWN_SFT_LOSSES = (None, "nll", "chunked_nll")
_PREFERENCE_COLUMNS = ("chosen", "rejected", "kto_", "kl_")
# Padding-free collators add these; models take them in `**kwargs`.
_PASSED_THROUGH = (
    "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx", "shift_labels",
    "num_items_in_batch",
)  # fmt: skip


def check_args(args: TrainingArguments) -> None:
    """Raise ``ValueError`` where ``args`` are of a trainer of TRL's with a loss of its own."""
    kinds = [kind for kind in type(args).__mro__ if kind.__module__.partition(".")[0] == "trl"]
    if kinds and kinds[0].__name__ != "SFTConfig":
        raise ValueError(f"`{kinds[0].__name__}` has a loss that is not the model's own; {REMEDY}")
    loss_type = getattr(args, "loss_type", None)
    if loss_type not in _OWN_SFT_LOSSES:
        raise ValueError(f"`loss_type` {loss_type!r} is not the model's own loss; {REMEDY}")


def check_columns(dataset: Any) -> None:
    """Raise ``ValueError`` where a data set holds preferences rather than what to learn."""
    columns = getattr(dataset, "column_names", None) or ()
    pairs = sorted(name for name in columns if str(name).startswith(_PREFERENCE_COLUMNS))
    if pairs:
        raise ValueError(f"columns {pairs} are for a loss that is not the model's own; {REMEDY}")


def check_batch(
    batch: Any, model: Any, label_names: Collection[str], args: TrainingArguments
) -> None:
    """Raise ``ValueError`` unless the model's own loss is meant by this batch.

    It must hold labels, only what the model's ``forward`` names, and no more rows than were asked
    for: trainers on pairs put both answers into one batch.

    Args:
        batch: as the collator made it.
        model: the PeftModel.
        label_names: of the model's ``forward``.
        args: of the run.
    """
    if not isinstance(batch, Mapping):
        raise ValueError(f"batches must be mappings, got {type(batch).__name__}; {REMEDY}")
    labels = next((batch[name] for name in label_names if name in batch), None)
    if labels is None:
        raise ValueError(
            f"a batch must hold one of {list(label_names)}, got {sorted(batch)}; {REMEDY}"
        )
    # The class is asked, since TRL puts another `forward` on the instance.
    known = inspect.signature(type(model.get_base_model()).forward).parameters
    unknown = sorted(set(batch) - set(known) - set(_PASSED_THROUGH))
    if unknown:
        raise ValueError(f"the model does not know {unknown} of a batch; {REMEDY}")
    if len(labels) > args.train_batch_size:
        raise ValueError(
            f"a batch must hold at most {args.train_batch_size} rows, as `args` say, got "
            f"{len(labels)}, such as two for each pair of answers; {REMEDY}"
        )
