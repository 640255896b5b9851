"""Batches in pieces of like length: the gradient of the whole batch, with far less padding.

Random batches of GSM8K are half padding. Sorting the *data* by length would change which examples
share a step; sorting within a batch does not. Exact for causal models whose loss is normalised by
the tokens of the whole batch, as HF's Trainer has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from hrp.bench.tasks import Example, Task

_PIECES = "pieces"
_KEPT = ("input_ids", "labels")


def splits(task: Task, micro_batch_size: int | None) -> bool:
    """Whether batches of ``task`` are split: causal ones padded on the right, where asked for."""
    if micro_batch_size is None or task.task_type != "CAUSAL_LM":
        return False
    return getattr(task.tokenizer, "padding_side", None) == "right"


class PieceCollator:
    """Collates rows in descending order of length, and notes where the pieces are.

    Args:
        collator: pads on the right.
        size: rows of a piece.
    """

    def __init__(self, collator: Callable[[list[Example]], Any], size: int) -> None:
        self._collator, self._size = collator, size

    def __call__(self, rows: list[Example]) -> Any:
        """Collate ``rows``."""
        rows = sorted(rows, key=lambda row: len(row["input_ids"]), reverse=True)
        begins = range(0, len(rows), self._size)
        pieces = [(at, at + self._size, len(rows[at]["input_ids"])) for at in begins]
        return {**self._collator(rows), _PIECES: pieces}


class PieceTrainer(Trainer):
    """Takes each step piece by piece; to be used with `PieceCollator`.

    No attention mask is passed on: under a causal mask no token sees the padding on its right.
    """

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Loss of the whole batch, its gradient added up.

        Raises:
            ValueError: the loss is not normalised by the tokens of the whole batch.
        """
        if num_items_in_batch is None:
            raise ValueError(
                "`micro_batch_size` needs a model whose loss is normalised by the tokens of the "
                f"whole batch, which {type(model).__name__}'s is not; leave it out"
            )
        losses = [
            super(PieceTrainer, self).training_step(
                model,
                {"use_cache": False} | {name: inputs[name][begin:end, :length] for name in _KEPT},
                num_items_in_batch,
            )
            for begin, end, length in inputs[_PIECES]
        ]
        return sum(losses[1:], losses[0])
