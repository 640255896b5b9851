"""Reads and writes the factor matrices of every PEFT LoRA layer kind.

Everything else sees, for each adapted module, ``lora_A`` (rank, d_in) and ``lora_B`` (d_out, rank)
with ``delta_weight = scaling * lora_B @ lora_A``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

from hrp.adapters.compat import is_convolution, wrap_embedding_output
from hrp.adapters.sharding import is_sharded, scatter, whole

_DORA_VARIANTS = tuple(
    f"Dora{kind}Variant" for kind in ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d")
)


@dataclass(frozen=True)
class LoraModule:
    """Holds one update matrix of one adapter: a LoRA layer, or one expert of a stacked parameter.

    ``name`` is the module's path in the base model, as `spectrum.Spectrum` keys it.
    """

    name: str
    layer: lora.LoraLayer
    adapter_name: str
    expert: int | None = None

    @property
    def pattern_key(self) -> str:
        """Return the module's name in PEFT's ``rank_pattern``, one for all its experts."""
        return self.name if self.expert is None else self.name.rpartition(".")[0]

    @property
    def rank(self) -> int:
        """Return PEFT's ``r`` of this adapter on this module."""
        return int(self.layer.r[self.adapter_name])

    @property
    def scaling(self) -> float:
        """Return the factor of ``lora_B @ lora_A`` in the update."""
        return float(self.layer.scaling[self.adapter_name])

    @property
    def shape(self) -> tuple[int, int]:
        """Return (d_out, d_in) of the update; a convolution's d_in counts its kernel's entries."""
        lora_A, lora_B = self.matrices()
        return lora_B.shape[0], lora_A.shape[1]

    @property
    def max_rank(self) -> int:
        """Return the largest rank that the update can have: min(d_out, d_in)."""
        return min(self.shape)

    @property
    def useful_rank(self) -> int:
        """Return how many directions the update can have: what is over `max_rank` starts empty."""
        return min(self.rank, self.max_rank)

    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """Return the trainable tensors (lora_A, lora_B), in PEFT's own shapes."""
        if isinstance(self.layer, lora.Embedding):
            holders = self.layer.lora_embedding_A, self.layer.lora_embedding_B
            return holders[0][self.adapter_name], holders[1][self.adapter_name]
        holders = self.layer.lora_A, self.layer.lora_B
        return holders[0][self.adapter_name].weight, holders[1][self.adapter_name].weight

    def bias(self) -> nn.Parameter | None:
        """Return the bias of ``lora_B``, which PEFT's ``lora_bias`` adds."""
        if self.adapter_name not in self.layer.lora_B:
            return None
        bias: nn.Parameter | None = self.layer.lora_B[self.adapter_name].bias
        return bias

    @property
    def device(self) -> torch.device:
        """Return the device of the factors."""
        return self.parameters()[0].device

    def base_norm(self) -> float | None:
        """Return the base weight's Frobenius norm; None if quantised, sharded or an expert's."""
        weight = getattr(self.layer.get_base_layer(), "weight", None)
        if self.expert is not None or not isinstance(weight, Tensor):
            return None
        readable = weight.is_floating_point() and weight.numel() == math.prod(self.shape)
        return (
            float(weight.detach().float().norm()) if readable and not is_sharded(weight) else None
        )

    def observe_inner(self, observe: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        """Pass what ``lora_A`` gives through ``observe``; return what undoes that."""
        if isinstance(self.layer, lora.Embedding):
            return wrap_embedding_output(self.layer, self.adapter_name, observe)
        hook = self.layer.lora_A[self.adapter_name].register_forward_hook(
            lambda module, inputs, output: observe(output)
        )
        return hook.remove

    def rows(self, z: Tensor) -> Float[Tensor, "tokens rank"]:
        """Return outputs of ``lora_A`` as rows, one a token; convolutions have them in dim 1."""
        if is_convolution(self.layer):
            z = z.movedim(1, -1)
        return z.reshape(-1, z.shape[-1])

    def magnitude(self) -> nn.Parameter | None:
        """Return DoRA's magnitude in PEFT's own shape; None where the layer has none."""
        if self.adapter_name not in self.layer.lora_magnitude_vector:
            return None
        magnitude: nn.Parameter = self.layer.lora_magnitude_vector[self.adapter_name].weight
        return magnitude

    @torch.no_grad()
    def magnitude_ratio(self) -> Tensor | None:
        """Return DoRA's magnitude over the row norms of ``W + delta_weight``; None without DoRA.

        The norms are left in the magnitude's place: to be read once, when training is over.
        """
        magnitude = self.magnitude()
        if magnitude is None:
            return None
        trained = whole(magnitude).float().clone()
        self._refresh_magnitude()
        return trained / whole(magnitude).float()

    @torch.no_grad()
    def scale_magnitude(self, ratio: Tensor) -> None:
        """Multiply DoRA's magnitude, as `write` has left it, by ``ratio``."""
        magnitude = self.magnitude()
        if magnitude is not None:
            value = whole(magnitude)
            value.mul_(ratio.to(value))
            scatter(magnitude, value)

    def is_trained(self) -> bool:
        """Return whether neither factor is all zeros."""
        return all(bool(factor.any()) for factor in self.matrices())

    def matrices(self) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
        """Return both factors as matrices without gradient, in the same memory unless sharded."""
        lora_A, lora_B = (whole(parameter) for parameter in self.parameters())
        if self.expert is not None:
            return self._of_expert(lora_A, lora_B)
        return lora_A.flatten(1), lora_B.flatten(1)

    def _of_expert(self, lora_A: Tensor, lora_B: Tensor) -> tuple[Tensor, Tensor]:
        experts = self.layer.num_experts
        lora_A = lora_A.view(experts, -1, lora_A.shape[-1])[self.expert]
        return lora_A, lora_B.view(lora_B.shape[0], -1, experts)[..., self.expert]

    @torch.no_grad()
    def write(
        self, lora_A: Float[Tensor, "rank d_in"], lora_B: Float[Tensor, "d_out rank"]
    ) -> None:
        """Copy both factors into the adapter, in its own dtype and on its own device.

        Where they are of a lower rank than the adapter, the directions beyond keep one factor as
        it is and get zeros in the other, so that they add nothing and can learn. A bias of
        ``lora_B`` becomes zero and a DoRA magnitude follows, so that the layer computes
        ``base + scaling * lora_B @ lora_A``.
        """
        factors = [whole(parameter) for parameter in self.parameters()]
        targets = factors if self.expert is None else self._of_expert(*factors)
        rank = lora_A.shape[0]
        rows, columns = targets[0][rank:], targets[1][:, rank:]
        (columns if rows.any() else rows).zero_()
        leading = targets[0][:rank], targets[1][:, :rank]
        for target, value in zip(leading, (lora_A, lora_B), strict=True):
            target.copy_(value.reshape(target.shape))
        for parameter, value in zip(self.parameters(), factors, strict=True):
            scatter(parameter, value)
        if (bias := self.bias()) is not None:
            scatter(bias, whole(bias).zero_())
        if self.adapter_name in self.layer.lora_magnitude_vector:
            self._refresh_magnitude()

    def _refresh_magnitude(self) -> None:
        holder = self.layer.lora_magnitude_vector[self.adapter_name]
        magnitude = holder.weight
        lora_A, lora_B = (parameter.detach() for parameter in self.parameters())
        holder.update_layer(
            base_layer=self.layer.get_base_layer(),
            lora_A=lora_A,
            lora_B=lora_B,
            scaling=self.scaling,
        )
        magnitude.copy_(holder.weight)
        holder.weight = magnitude  # the same object, which an optimizer may already hold


def lora_modules(model: object, adapter_name: str) -> dict[str, LoraModule]:
    """Return all update matrices of a LoRA adapter, by module name, sorted.

    Raises:
        TypeError: ``model`` is no ``PeftModel``, or the adapter no LoRA.
        ValueError: no such adapter, nothing adapted, factors tied by ``ensure_weight_tying``, a
            merged adapter, or a layer kind or variant that HRP cannot initialise; the message
            names the module and its kind.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"`model` must be a PeftModel with a LoRA adapter, got {type(model).__name__}; wrap it "
            "first: `peft.get_peft_model(model, LoraConfig(...))`"
        )
    if adapter_name not in model.peft_config:
        raise ValueError(
            f"`adapter_name` must be one of {sorted(model.peft_config)}, got {adapter_name!r}"
        )
    config = model.peft_config[adapter_name]
    kind = str(getattr(config.peft_type, "value", ""))
    if kind != "LORA":
        raise TypeError(
            f"adapter {adapter_name!r} must be of type LORA, got {kind}; HRP initialises LoRA "
            "factors: use a `peft.LoraConfig`"
        )
    # PEFT ties the first adapter alone, and only until one is moved.
    if tied := getattr(config, "target_modules_to_tie", None):
        raise ValueError(
            "`ensure_weight_tying` must be False where `target_modules` cover a tied embedding, "
            f"got True for adapter {adapter_name!r} (tied: {sorted(tied)}): tied factors cannot "
            "be preheated; make the adapter without it, or leave the embedding out"
        )
    found = {
        module.name: module
        for path, layer in model.get_base_model().named_modules()
        if isinstance(layer, lora.LoraLayer) and adapter_name in layer.r
        for module in _update_matrices(path, layer, adapter_name)
    }
    if not found:
        raise ValueError(
            f"adapter {adapter_name!r} has no LoRA module; check its `target_modules` against "
            "`model.named_modules()`"
        )
    return dict(sorted(found.items()))


def _update_matrices(path: str, layer: lora.LoraLayer, adapter_name: str) -> Iterator[LoraModule]:
    name = ".".join(part for part in path.split(".") if part != "base_layer")
    if layer.merged:  # unmerging would subtract the new factors, which were never added
        raise ValueError(
            f"no adapter may be merged, got {layer.merged_adapters} merged into module {name!r}; "
            "call `model.unmerge_adapter()` first"
        )
    if reason := _refusal(layer, adapter_name):
        raise ValueError(
            f"module {name!r} is {reason}, which HRP cannot initialise; leave it out of the "
            "adapter with `exclude_modules`"
        )
    if isinstance(layer, lora.ParamWrapper):
        name = f"{name}.{layer.parameter_name}"
        if layer.num_experts > 1:
            for expert in range(layer.num_experts):
                yield LoraModule(f"{name}.{expert}", layer, adapter_name, expert)
            return
    yield LoraModule(name, layer, adapter_name)


def _refusal(layer: lora.LoraLayer, adapter_name: str) -> str | None:
    base = layer.get_base_layer()
    variant = type(layer.lora_variant.get(adapter_name)).__name__
    if variant not in ("NoneType", *_DORA_VARIANTS):
        return f"of the LoRA variant {variant}"
    if getattr(base, "groups", 1) != 1:
        return f"a grouped {type(base).__name__} (groups={base.groups})"
    if isinstance(layer, lora.Embedding) or is_convolution(layer):
        return None
    holders = layer.lora_A, layer.lora_B
    if all(adapter_name in h and isinstance(h[adapter_name], nn.Linear) for h in holders):
        return None
    return f"of kind {type(base).__name__} (PEFT's {type(layer).__name__})"
