"""Passes over batches whose labels are all -100, whose mean loss is NaN, as HF's Trainer does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_IGNORED = -100


class EmptyBatches:
    """Makes the loss of batches without a label zero, and tells steps that had no other batch."""

    def __init__(self) -> None:
        self._flags: list[Tensor | bool] = []

    def passed_over(self, loss: Tensor, batch: Any) -> Tensor:
        """Return ``loss``, or zero where it is NaN for want of labels; waits for no device."""
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            self._flags.append(False)
            return loss
        counted = labels[..., 1:] if labels.dim() > 1 else labels  # the first one is not predicted
        empty = (counted == _IGNORED).all().to(loss.device) & loss.isnan().all()
        self._flags.append(empty)
        return torch.where(empty, torch.zeros_like(loss), loss)

    def watch(self, trainer: Any) -> None:
        """Let a trainer's steps go through `passed_over`."""
        training_step = trainer.training_step

        def step(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return self.passed_over(training_step(model, inputs, *args, **kwargs), inputs)

        trainer.training_step = step

    def since_last(self, loss: float) -> bool:
        """Return whether the step of this loss had no batch with a label."""
        flags, self._flags = self._flags, []
        return loss == 0 and bool(flags) and all(map(bool, flags))
