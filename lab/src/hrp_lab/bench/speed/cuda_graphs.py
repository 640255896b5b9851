"""Replay training steps as CUDA graphs, where the CPU launches kernels slower than they run.

A step of a small model is thousands of short kernels. Each shape of batch has its forward and
backward pass captured once (the second time it is met; the first runs as usual) and replayed from
then on; the optimizer, the schedule and the callbacks stay HF Trainer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

_Step = Callable[[dict[str, Any], Any], Tensor]
_PAD_TO = 32  # tokens; lengths rounded up leave few shapes to capture


def with_few_shapes(collator: Any) -> Any:
    """Tell HF's padding collators to round lengths up; return any other as it is."""
    if getattr(collator, "pad_to_multiple_of", 0) is None:
        return dataclasses.replace(collator, pad_to_multiple_of=_PAD_TO)
    return collator


class GraphedTrainer(Trainer):
    """Trains as HF's Trainer does, with graphs of its passes; for one process on one GPU.

    Raises:
        ValueError: gradients are accumulated over several batches, or there is not one GPU.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.gradient_accumulation_steps > 1 or self.args.n_gpu != 1:
            raise ValueError(
                "CUDA graphs need one GPU a process and `gradient_accumulation_steps` 1, got "
                f"{self.args.n_gpu} GPUs and {self.args.gradient_accumulation_steps}; leave "
                "`--cuda_graphs` out"
            )
        self._graphs: _Graphs | None = None

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Take the forward and backward pass of a batch; return the loss."""

        def step(batch: dict[str, Any], items: Any) -> Tensor:
            return super(GraphedTrainer, self).training_step(model, batch, items)

        # What hooks look at must run, and not be replayed.
        if any(getattr(c, "observing", False) for c in self.callback_handler.callbacks):
            return step(dict(self._prepare_inputs(inputs)), num_items_in_batch)
        if self._graphs is None:
            self._graphs = _Graphs([p for p in model.parameters() if p.requires_grad])
        items = num_items_in_batch
        if items is not None:
            items = torch.as_tensor(items, device=self.args.device)
        return self._graphs.run(step, dict(self._prepare_inputs(inputs)), items)


class _Graphs:
    """Holds graphs by shape of batch; they share memory and write the same gradients."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._parameters = parameters
        self._gradients = [torch.zeros_like(p) for p in parameters]
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: set[Any] = set()
        self._captured: dict[Any, _Graph] = {}

    def run(self, step: _Step, batch: dict[str, Any], items: Any) -> Tensor:
        shape = _shape(batch, items)
        if shape not in self._seen:
            self._seen.add(shape)
            return step(batch, items)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        if shape not in self._captured:
            self._captured[shape] = _Graph(step, batch, items, self._gradients, self._pool)
        return self._captured[shape].replay(batch, items)


class _Graph:
    """Holds a captured step, with the tensors that it reads and its loss."""

    def __init__(
        self, step: _Step, batch: dict[str, Any], items: Any, gradients: list[Tensor], pool: Any
    ) -> None:
        self._batch = {k: v.clone() if isinstance(v, Tensor) else v for k, v in batch.items()}
        self._items = items.clone() if isinstance(items, Tensor) else items
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            torch._foreach_zero_(gradients)
            self._loss = step(self._batch, self._items)

    def replay(self, batch: dict[str, Any], items: Any) -> Tensor:
        for name, value in batch.items():
            if isinstance(value, Tensor):
                self._batch[name].copy_(value, non_blocking=True)
        if isinstance(items, Tensor):
            self._items.copy_(items, non_blocking=True)
        self._graph.replay()
        return self._loss.clone()  # its memory is another graph's too


def _shape(batch: dict[str, Any], items: Any) -> Any:
    """Return all that a captured step cannot vary."""
    given = [*sorted(batch.items()), ("items", items)]
    return tuple((k, (v.shape, v.dtype) if isinstance(v, Tensor) else v) for k, v in given)
