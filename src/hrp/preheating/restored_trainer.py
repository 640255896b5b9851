"""Leaves a trainer and its dataloader as they were found, by context managers."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import Trainer

_CONTAINERS = (dict, list, set, defaultdict, OrderedDict, deque)
_DEPTH = 3  # TRL's buffers of metrics: mode, then name, then the values
_DATA = ("train_dataset", "eval_dataset")  # too large to be copied, and only read
_LOADER_PARTS = ("base_dataloader", "batch_sampler", "sampler")


@contextmanager
def restored_trainer(trainer: Trainer) -> Iterator[None]:
    """Undo, on exit, every change to a trainer, its accelerator, its collator and its data set.

    The model and the global generators are left to `hrp.adapters.restoring`.
    """
    accelerator, collator = trainer.accelerator, trainer.data_collator
    scaler = getattr(accelerator, "scaler", None)
    scale = scaler.state_dict() if scaler is not None else {}
    with ExitStack() as stack:
        for holder in (trainer, accelerator, getattr(trainer, "_memory_tracker", None)):
            stack.enter_context(restored_attributes(holder))
        stack.enter_context(restored_attributes(getattr(collator, "__self__", collator)))
        stack.enter_context(restored_attributes(trainer.train_dataset, depth=0))
        try:
            yield
        finally:
            if scaler is not None and scale:  # a scaler that is off has no state
                scaler.load_state_dict(scale)


@contextmanager
def restored_loader(loader: Any) -> Iterator[None]:
    """Undo, on exit, what iterating changes in a dataloader, its samplers and its data set."""
    parts, waiting = {}, [loader]
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in parts:
            parts[id(part)] = part
            waiting += [getattr(part, name, None) for name in _LOADER_PARTS]
    with ExitStack() as stack:
        for part in parts.values():
            stack.enter_context(restored_attributes(part))
        stack.enter_context(restored_attributes(getattr(loader, "dataset", None), depth=0))
        yield


@contextmanager
def restored_attributes(holder: Any, depth: int = _DEPTH) -> Iterator[None]:
    """Put back, on exit, the attributes of any object, and the state of generators among them.

    Within, containers are copies down to ``depth``, so that what is put into them is gone on exit.
    """
    attributes = getattr(holder, "__dict__", None)
    if not isinstance(attributes, dict):
        yield
        return
    before = dict(attributes)
    states = [restore for value in before.values() if (restore := _generator_state(value))]
    attributes.update({k: _copied(v, depth) for k, v in before.items() if k not in _DATA})
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(before)
        for restore in states:
            restore()


def _copied(value: Any, depth: int) -> Any:
    if not depth or type(value) not in _CONTAINERS:
        return value
    duplicate = copy.copy(value)
    if isinstance(duplicate, dict):
        for key, content in value.items():
            duplicate[key] = _copied(content, depth - 1)
    elif isinstance(duplicate, list):
        duplicate[:] = [_copied(content, depth - 1) for content in value]
    return duplicate


def _generator_state(value: Any) -> Callable[[], Any] | None:
    """Return how to put a random generator back to where it is now; None for anything else."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return None
