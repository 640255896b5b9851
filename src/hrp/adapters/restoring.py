"""Leaves a model and the random number generators as they were found, by context managers.

Training touches a model in many places: adapters, hooks, a patched ``forward``, ``requires_grad``,
train mode, the config. All of it is undone here at once, also when an exception passes.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hrp.adapters.compat import accumulation_state

_TENSOR_DICTS = ("_parameters", "_buffers")
# Packed weights (GPTQ, AWQ) are large integer buffers, which no training step writes.
_PACKED_WEIGHT_NUMEL = 2**20


@contextmanager
def restored_model(model: nn.Module) -> Iterator[None]:
    """Undo, on exit, every change to ``model`` but the place (device) of its tensors.

    Restored: module tree and attributes (hence adapters, hooks, active adapter, train mode), the
    model's configs, ``requires_grad``, gradients, the memory of parameters (one that was resized
    gets its own back), and the values of buffers. Values of parameters are not copied: the caller
    freezes those that must not change. Enter it in `interrupts.interrupts_held`.
    """
    holders = [*model.modules(), *_configs(model)]
    attributes = [(holder, _copied(vars(holder))) for holder in holders]
    parameters = [(p, p.requires_grad, p.grad, p.data) for p in model.parameters()]
    buffers = _copied_buffers(model)
    try:
        yield
    finally:
        for holder, saved in attributes:
            _restore_attributes(holder, saved)
        for parameter, requires_grad, grad, data in parameters:
            _restore_data(parameter, data)
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, name, value in buffers:
            _restore_buffer(module, name, value)


@contextmanager
def restored_rng() -> Iterator[None]:
    """Restore, on exit, the global generators of Python, NumPy and torch, on all its devices."""
    restorers: list[Callable[[], object]] = [
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),
        partial(torch.set_rng_state, torch.get_rng_state()),
        *_accelerator_generators(),
    ]
    try:
        yield
    finally:
        for restore in restorers:
            restore()


def _accelerator_generators() -> list[Callable[[], object]]:
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


@contextmanager
def restored_accumulation() -> Iterator[None]:
    """Restore, on exit, the gradient accumulation that the user's own Accelerator has set.

    Accelerate keeps it once a process: any later Accelerator, a Trainer's too, overwrites it.
    """
    shared = accumulation_state()
    before = dict(shared)
    try:
        yield
    finally:
        if before:
            shared.clear()
            shared.update(before)


@contextmanager
def restored_generators(dataloader: object) -> Iterator[None]:
    """Restore, on exit, the generators that a DataLoader and its samplers draw from."""
    batch_sampler = getattr(dataloader, "batch_sampler", None)
    samplers = (getattr(dataloader, "sampler", None), getattr(batch_sampler, "sampler", None))
    found = [
        getattr(holder, "generator", None) for holder in (dataloader, batch_sampler, *samplers)
    ]
    states = [(one, one.get_state()) for one in found if isinstance(one, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _configs(model: nn.Module) -> list[Any]:
    names = ("config", "generation_config")
    found = [getattr(module, name, None) for module in model.modules() for name in names]
    unique = {id(config): config for config in found if hasattr(config, "__dict__")}
    return list(unique.values())


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Map names to (the object, a shallow copy of its content where it is a container)."""
    return {
        name: (value, value.copy() if isinstance(value, dict | list | set) else None)
        for name, value in attributes.items()
    }


def _restore_attributes(holder: Any, saved: dict[str, tuple[Any, Any]]) -> None:
    current = vars(holder)
    for name in [name for name in current if name not in saved]:
        del current[name]
    for name, (value, content) in saved.items():
        if name in _TENSOR_DICTS:
            _restore_tensor_keys(value, content)
            continue
        current[name] = value
        if content is None or _holds(value, content):  # frozen ones refuse even that
            continue
        if isinstance(value, list):
            value[:] = content
        else:
            value.clear()
            value.update(content)


def _holds(container: Any, content: Any) -> bool:
    """Return whether a list, dict or set still holds the objects of its copy, in their order."""
    if isinstance(container, set):
        return bool(container == content)
    if isinstance(container, dict):
        container, content = list(container.items()), list(content.items())
        return [key for key, _ in container] == [key for key, _ in content] and all(
            one is other for (_, one), (_, other) in zip(container, content, strict=True)
        )
    return len(container) == len(content) and all(map(operator.is_, container, content))


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


def _copied_buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor]]:
    return [
        (module, name, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
        and (buffer.is_floating_point() or buffer.numel() < _PACKED_WEIGHT_NUMEL)
    ]


def _restore_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    current = module._buffers[name]
    device = value.device if current is None else current.device
    if current is None or current.shape != value.shape or current.dtype != value.dtype:
        module._buffers[name] = value.to(device)
    elif not torch.equal(current, value.to(device)):
        current.copy_(value)
