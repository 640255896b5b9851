"""Leaves a model, a trainer and the random generators as they were found, by context managers.

Training touches a model in many places: adapters, hooks, a patched ``forward``, ``requires_grad``,
train mode, the config. All of it is undone here at once, also when an exception passes. Enter these
in `interrupts.interrupts_held`.
"""

from __future__ import annotations

import operator
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hrp.adapters.compat import accumulation_state

_TENSOR_DICTS = ("_parameters", "_buffers")
_DATA = ("dataset", "train_dataset", "eval_dataset")  # large, and only read
_LOADER_PARTS = ("base_dataloader", "batch_sampler", "sampler")
# Packed weights (GPTQ, AWQ) are large integer buffers, which no training step writes.
_PACKED_WEIGHT_NUMEL = 2**20

Restorer = Callable[[], object]


@contextmanager
def restored_model(model: nn.Module) -> Iterator[None]:
    """Undo, on exit, every change to ``model`` but the place (device) of its tensors.

    Restored: module tree and attributes (hence adapters, hooks, active adapter, train mode), the
    model's configs, ``requires_grad``, gradients, the memory of parameters (one that was resized
    gets its own back), and the values of buffers. Values of parameters are not copied: the caller
    freezes those that must not change.
    """
    names = ("config", "generation_config")
    configs = [getattr(module, name, None) for module in model.modules() for name in names]
    unique = {id(holder): holder for holder in (*model.modules(), *configs)}
    parameters = [(p, p.requires_grad, p.grad, p.data) for p in model.parameters()]
    buffers = [
        (module, name, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
        and (buffer.is_floating_point() or buffer.numel() < _PACKED_WEIGHT_NUMEL)
    ]
    try:
        with restored_attributes(*unique.values(), depth=1):
            yield
    finally:
        for parameter, requires_grad, grad, data in parameters:
            _restore_data(parameter, data)
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, name, value in buffers:
            _restore_buffer(module, name, value)


@contextmanager
def restored_trainer(trainer: Any) -> Iterator[None]:
    """Undo, on exit, every change to a trainer, its accelerator, its collator and its data set.

    The model and the global generators are left to `restored_model` and `restored_globals`.
    """
    holders = (
        trainer,
        trainer.accelerator,
        getattr(trainer.accelerator, "scaler", None),
        getattr(trainer, "_memory_tracker", None),
        getattr(trainer.data_collator, "__self__", trainer.data_collator),
    )
    with restored_attributes(*holders), restored_attributes(trainer.train_dataset, depth=0):
        yield


@contextmanager
def restored_loader(loader: Any) -> Iterator[None]:
    """Undo, on exit, what iterating changes in a dataloader, its samplers and its data set."""
    parts, waiting = {}, [loader]
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in parts:
            parts[id(part)] = part
            waiting += [getattr(part, name, None) for name in _LOADER_PARTS]
    dataset = getattr(loader, "dataset", None)
    with restored_attributes(*parts.values()), restored_attributes(dataset, depth=0):
        yield


@contextmanager
def restored_attributes(*holders: Any, depth: int = 3) -> Iterator[None]:
    """Put back, on exit, the attributes of objects, and the state of generators among them.

    The content of lists, dicts and sets is put back too, down to ``depth``: 3 is that of TRL's
    buffers of metrics, which are by mode and by name.
    """
    restorers: list[Restorer | None] = []
    for holder in holders:
        attributes = getattr(holder, "__dict__", None)
        if not isinstance(attributes, dict):
            continue
        restorers += [partial(attributes.clear), partial(attributes.update, dict(attributes))]
        for name, value in attributes.items():
            if name in _TENSOR_DICTS:
                restorers.append(partial(_restore_tensor_keys, value, dict(value)))
            else:
                restorers.append(_restorer(value, 0 if name in _DATA else depth))
    try:
        yield
    finally:
        for restore in filter(None, restorers):
            restore()


@contextmanager
def restored_globals() -> Iterator[None]:
    """Restore, on exit, the generators of Python, NumPy and torch, and gradient accumulation.

    That is the user's own Accelerator's: Accelerate keeps it once a process, and any later
    Accelerator, a Trainer's too, overwrites it.
    """
    accumulation = accumulation_state()
    restorers: list[Restorer] = [
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),
        partial(torch.set_rng_state, torch.get_rng_state()),
        *_accelerator_generators(),
    ]
    if accumulation:
        restorers.append(partial(_restore_content, accumulation, dict(accumulation), []))
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _accelerator_generators() -> list[Restorer]:
    """Return what puts the generators of CUDA, XPU, MPS and others back to where they are now.

    CUDA and XPU are started for it: a seed that was set before would be lost with the first one
    that preheating sets.
    """
    if not torch.accelerator.is_available():
        return []
    device = torch.accelerator.current_accelerator()
    module: Any = torch.get_device_module(device)
    if device is not None and device.type == "mps":  # which is always one
        return [partial(module.set_rng_state, module.get_rng_state())]
    try:
        module.init()
    except RuntimeError:  # as in a fork of a process that uses it
        return []
    return [
        partial(module.set_rng_state, module.get_rng_state(index), index)
        for index in range(module.device_count())
    ]


def _restorer(value: Any, depth: int) -> Restorer | None:
    """Return what puts a container or a random generator back to where it is now, if it is one."""
    if depth and isinstance(value, dict | list | set | deque):
        parts = value.values() if isinstance(value, dict) else value
        inner = [restore for part in parts if (restore := _restorer(part, depth - 1))]
        content = dict(value) if isinstance(value, dict) else list(value)
        return partial(_restore_content, value, content, inner)
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return None


def _restore_content(container: Any, content: Any, inner: list[Restorer]) -> None:
    now, before = (
        list(chain(*held.items()) if isinstance(held, dict) else held)
        for held in (container, content)
    )
    if len(now) != len(before) or not all(map(operator.is_, now, before)):  # a frozen one is not
        container.clear()
        if isinstance(container, list | deque):
            container.extend(content)
        else:
            container.update(content)
    for restore in inner:
        restore()


def _restore_tensor_keys(tensors: dict[str, Any], content: dict[str, Any]) -> None:
    """Drop added and bring back removed or replaced tensors, in their order.

    PEFT replaces the weights of ``nn.MultiheadAttention`` in every forward pass, with a rounding
    error. One that moved to another device stays there.
    """
    current = dict(tensors)
    tensors.clear()
    for name, value in content.items():
        new = current.get(name)
        moved = new is not None and value is not None and new.device != value.device
        tensors[name] = new if moved else value


def _restore_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter its memory back if that was exchanged; one that only moved stays there."""
    current = parameter.data
    same = (current.shape, current.dtype) == (data.shape, data.dtype)
    if current.device == data.device:
        plain = type(current) is Tensor and current.layout == torch.strided
        if not same or (plain and current.data_ptr() != data.data_ptr()):
            parameter.data = data
    elif not same and type(parameter) is nn.Parameter:  # others are packed when they move
        parameter.data = data.to(current.device)


def _restore_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    current = module._buffers[name]
    device = value.device if current is None else current.device
    if current is None or current.shape != value.shape or current.dtype != value.dtype:
        module._buffers[name] = value.to(device)
    elif not torch.equal(current, value.to(device)):
        current.copy_(value)
