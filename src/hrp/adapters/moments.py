"""Sums second moments of what the temporary ``lora_A`` gives and of its gradient, by hooks.

With z = A x the output of ``lora_A`` (R numbers a token) and g = dL/dz, these are the sums over
tokens of ``z z^T`` and ``g g^T``, both R x R: what the truncation in the metric of the loss needs
(docs/theory.md, P11). No pass is added, and no memory in d_in or d_out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrp.adapters.layers import LoraModule

_WITHOUT_INFLUENCE = 1e-6
"""Share of the batch's largest gradient: less is rounding, as at the query of a first token."""
_PARTS = ("inputs", "gradients")
_SUMS_IN_FLOAT32 = "dtype" in torch.ops.aten.mm.overloads()  # since torch 2.8


@dataclass
class ModuleMoments:
    """Holds sums over the tokens that a module has seen, in float32.

    Args:
        inputs: (R, R), sum of ``z z^T``.
        gradients: (R, R), sum of ``g g^T``.
    """

    inputs: Float[Tensor, "R R"]
    gradients: Float[Tensor, "R R"]

    @torch.no_grad()
    def add(self, z: Float[Tensor, "tokens R"], g: Float[Tensor, "tokens R"]) -> None:
        """Add tokens, but those without influence (padding) and those whose gradient overflowed.

        A gradient overflows where a loss scaler tries too large a factor; it skips that step.
        """
        if not g.numel():
            return  # nothing was routed to this expert
        with torch.autocast(z.device.type, enabled=False):
            size = torch.linalg.vector_norm(g, math.inf, dim=1, keepdim=True)
            size = size.nan_to_num(0.0, posinf=0.0)
            seen = size > _WITHOUT_INFLUENCE * size.amax()
            z, g = torch.where(seen, z, 0.0), torch.where(seen, g, 0.0)
            self.inputs += _second_moment(z)
            self.gradients += _second_moment(g)


def _second_moment(x: Float[Tensor, "tokens R"]) -> Float[Tensor, "R R"]:
    """Return the sum of ``x x^T`` over tokens, added up in float32.

    A GPU takes half precision as it is: its products are exact in float32, and far sooner there.
    """
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and _SUMS_IN_FLOAT32:
        return torch.mm(x.mT, x, out_dtype=torch.float32)
    x = x.float()
    return x.mT @ x


class Moments:
    """Holds the moments of all modules of the temporary adapter, over the observed steps.

    Modules whose ``lora_A`` is not called as a module of its own (experts, attention's packed
    projections) have none.

    Args:
        modules: of the temporary adapter, by name.
    """

    def __init__(self, modules: dict[str, LoraModule]) -> None:
        self.observing = False
        self._modules = modules
        self._sums: dict[str, ModuleMoments] = {}

    def any_trained(self) -> bool:
        """Return whether any module of the temporary adapter has learned something."""
        return any(module.is_trained() for module in self._modules.values())

    def clear(self) -> None:
        """Forget what was observed."""
        self._sums.clear()

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """See what every ``lora_A`` gives while `observing` is true."""
        undo: list[Callable[[], object]] = []
        try:
            for name, module in self._modules.items():
                if module.expert is None:
                    undo.append(module.observe_inner(self._observer(name)))
            yield
        finally:
            self.observing = False
            for remove in undo:
                remove()

    def _observer(self, name: str) -> Callable[[Tensor], Tensor]:
        @torch.compiler.disable
        def observe(z: Tensor) -> Tensor:
            if not (self.observing and torch.is_grad_enabled() and z.requires_grad):
                return z
            observed: Tensor = _Observe.apply(z, self, name)
            return observed

        return observe

    def add(self, name: str, z: Tensor, g: Tensor) -> None:
        """Add the tokens of one backward pass of module ``name``, in PEFT's own shapes."""
        z, g = self._modules[name].rows(z), self._modules[name].rows(g)
        if name not in self._sums:
            zeros = torch.zeros(z.shape[1], z.shape[1], device=z.device)
            self._sums[name] = ModuleMoments(zeros, zeros.clone())
        self._sums[name].add(z, g)

    def total(self, name: str) -> ModuleMoments | None:
        """Return the sums of a module over all processes; None if no token was seen."""
        module = self._modules[name]
        zeros = torch.zeros(module.rank, module.rank, device=module.device)
        sums = self._sums.get(name) or ModuleMoments(zeros, zeros)
        parts = [sums.inputs, sums.gradients]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [part.to(module.device, copy=True) for part in parts]
            for part in parts:
                torch.distributed.all_reduce(part)
        return ModuleMoments(*parts) if float(parts[1].trace()) > 0 else None

    def save(self, path: Path, is_main_process: bool) -> None:
        """Write the sums over all processes, for a run that goes on from a checkpoint."""
        sums_of = {n: self.total(n) for n, m in self._modules.items() if m.expert is None}
        totals = {name: sums for name, sums in sums_of.items() if sums is not None}
        if not is_main_process or not totals:
            return
        tensors = {
            f"{name}.{part}": getattr(sums, part).detach().cpu().contiguous()
            for name, sums in totals.items()
            for part in _PARTS
        }
        save_file(tensors, path)

    def load(self, path: Path, is_main_process: bool) -> None:
        """Undo `save`; the main process alone takes the sums, so that they count once."""
        self.clear()
        if not is_main_process or not path.exists():
            return
        tensors = load_file(path)
        for name, module in self._modules.items():
            if f"{name}.{_PARTS[0]}" in tensors:
                parts = (tensors[f"{name}.{part}"] for part in _PARTS)
                self._sums[name] = ModuleMoments(*(part.to(module.device) for part in parts))


class _Observe(torch.autograd.Function):
    """Passes z on and sees its gradient.

    As z is a saved tensor, gradient checkpointing drops and recomputes it as it does all others,
    and as only one backward pass runs, each token counts once.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, moments: Moments, name: str) -> Tensor:
        ctx.save_for_backward(z)
        ctx.moments, ctx.name = moments, name
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        ctx.moments.add(ctx.name, z.detach(), g.detach())
        return g, None, None
