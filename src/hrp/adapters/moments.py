"""Sums second moments of what the temporary ``lora_A`` gives and of its gradient, by hooks.

With z = A x the output of ``lora_A`` (R numbers a token) and g = dL/dz, these are the sums over
tokens of ``z z^T`` and ``g g^T``, both R x R: what the truncation in the metric of the loss needs
(docs/theory.md, P11). No pass is added, and no memory in d_in or d_out.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from hrp.adapters.layers import LoraModule

_WITHOUT_INFLUENCE = 1e-6
"""Share of the batch's largest gradient: less is rounding, as at the query of a first token."""
_WAITING_BYTES = 32 * 2**20
"""So much of a backward pass waits before it is added up: one large sum costs less than many."""
_PARTS = ("inputs", "gradients")
_SUMS_IN_FLOAT32 = "dtype" in torch.ops.aten.bmm.overloads()  # since torch 2.8


class ModuleMoments(NamedTuple):
    """Holds sums over the tokens that a module has seen, in float32.

    Args:
        inputs: (R, R), sum of ``z z^T``.
        gradients: (R, R), sum of ``g g^T``.
    """

    inputs: Float[Tensor, "R R"]
    gradients: Float[Tensor, "R R"]


@torch.no_grad()
def _second_moments(
    zs: list[Float[Tensor, "tokens R"]], gs: list[Float[Tensor, "tokens R"]]
) -> Float[Tensor, "n 2 R R"]:
    """Return the sums of ``z z^T`` and ``g g^T`` over tokens, of n modules, in float32.

    Tokens without influence (padding) are left out, and those whose gradient overflowed, as it
    does where a loss scaler tries too large a factor; it skips that step.
    """
    with torch.autocast(zs[0].device.type, enabled=False):
        pairs = torch.stack([x for pair in zip(zs, gs, strict=True) for x in pair])
        pairs = pairs.unflatten(0, (-1, 2))
        size = torch.linalg.vector_norm(pairs[:, 1], math.inf, dim=-1, keepdim=True)
        size = size.nan_to_num(0.0, posinf=0.0)
        unseen = size <= _WITHOUT_INFLUENCE * size.amax(1, keepdim=True)
        x = pairs.masked_fill_(unseen.unsqueeze(1), 0.0).flatten(0, 1)
        return _gram(x).unflatten(0, (-1, 2))


def _gram(x: Float[Tensor, "n tokens R"]) -> Float[Tensor, "n R R"]:
    """Return the sums of ``x x^T`` over tokens, added up in float32.

    A GPU takes half precision as it is: its products are exact in float32, and far sooner there.
    """
    if x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and _SUMS_IN_FLOAT32:
        return torch.bmm(x.mT, x, out_dtype=torch.float32)
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
        self._sums: dict[str, Float[Tensor, "2 R R"]] = {}  # inputs, gradients
        self._waiting: list[tuple[str, Tensor, Tensor]] = []
        self._waiting_bytes = 0

    def any_trained(self) -> bool:
        """Return whether any module of the temporary adapter has learned something."""
        return any(module.is_trained() for module in self._modules.values())

    def clear(self) -> None:
        """Forget what was observed."""
        self._sums.clear()
        self._waiting.clear()
        self._waiting_bytes = 0

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
        if not g.numel():
            return  # nothing was routed to this expert
        self._waiting.append((name, z, g))
        self._waiting_bytes += z.nbytes + g.nbytes
        if self._waiting_bytes >= _WAITING_BYTES:
            self._add_up()

    def _add_up(self) -> None:
        """Add what waits to the sums, modules of one shape together."""
        groups: dict[tuple[Any, ...], list[tuple[str, Tensor, Tensor]]] = defaultdict(list)
        for name, z, g in self._waiting:
            groups[z.shape, z.dtype, z.device].append((name, z, g))
        self._waiting.clear()
        self._waiting_bytes = 0
        for group in groups.values():
            names, zs, gs = (list(column) for column in zip(*group, strict=True))
            for name, sums in zip(names, _second_moments(zs, gs), strict=True):
                self._sums[name] = self._sums[name] + sums if name in self._sums else sums.clone()

    def total(self, name: str) -> ModuleMoments | None:
        """Return the sums of a module over all processes; None if no token was seen."""
        self._add_up()
        module = self._modules[name]
        sums = self._sums.get(name)
        if sums is None:
            sums = torch.zeros(2, module.rank, module.rank, device=module.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            sums = sums.to(module.device, copy=True)
            torch.distributed.all_reduce(sums)
        return ModuleMoments(*sums) if float(sums[1].trace()) > 0 else None

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
                parts = [tensors[f"{name}.{part}"] for part in _PARTS]
                self._sums[name] = torch.stack(parts).to(module.device)


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
