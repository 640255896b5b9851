"""Reads and writes the factor matrices of every PEFT LoRA layer kind.

The only module that knows how PEFT stores them. Everything else sees, for each adapted module,
``lora_A`` (rank, d_in) and ``lora_B`` (d_out, rank) with
``delta_weight = scaling * lora_B @ lora_A``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import layer as lora
from torch import Tensor, nn

from hrp.adapters.sharding import scatter, whole
from hrp.errors import PreheatingError
from hrp.spectra.factorization import factored_svd
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum

_DORA_VARIANTS = tuple(
    f"Dora{kind}Variant" for kind in ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d")
)

MODULES_AT_ONCE = 16
"""Largest batch of the factored SVD: enough to fill a GPU, a few hundred MiB at 8B shapes."""


@dataclass(frozen=True)
class LoraModule:
    """One update matrix of one adapter: a LoRA layer, or one expert of a stacked parameter.

    ``name`` is the module's path in the base model, as `spectrum.Spectrum` keys it.
    """

    name: str
    layer: lora.LoraLayer
    adapter_name: str
    expert: int | None = None

    @property
    def pattern_key(self) -> str:
        """Name by which PEFT's ``rank_pattern`` knows the module: all its experts together."""
        return self.name if self.expert is None else self.name.rpartition(".")[0]

    @property
    def rank(self) -> int:
        """PEFT's ``r`` of this adapter on this module."""
        return int(self.layer.r[self.adapter_name])

    @property
    def scaling(self) -> float:
        """Factor of ``lora_B @ lora_A`` in the update."""
        return float(self.layer.scaling[self.adapter_name])

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the update; a convolution's d_in counts its kernel's entries."""
        lora_A, lora_B = self.views()
        return lora_B.shape[0], lora_A.shape[1]

    @property
    def max_rank(self) -> int:
        """Largest rank that the update can have: min(d_out, d_in)."""
        return min(self.shape)

    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        """The trainable tensors (lora_A, lora_B), in PEFT's own shapes."""
        if isinstance(self.layer, lora.Embedding):
            holders = self.layer.lora_embedding_A, self.layer.lora_embedding_B
            return holders[0][self.adapter_name], holders[1][self.adapter_name]
        holders = self.layer.lora_A, self.layer.lora_B
        return holders[0][self.adapter_name].weight, holders[1][self.adapter_name].weight

    def bias(self) -> nn.Parameter | None:
        """The bias of ``lora_B``, which PEFT's ``lora_bias`` adds."""
        if self.adapter_name not in self.layer.lora_B:
            return None
        found: nn.Parameter | None = self.layer.lora_B[self.adapter_name].bias
        return found

    def is_trained(self) -> bool:
        """Whether neither factor is all zeros."""
        return all(bool(factor.any()) for factor in self.views())

    def views(self) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
        """Both factors as matrices without gradient, in the parameters' memory unless sharded."""
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

        A bias of ``lora_B`` becomes zero and a DoRA magnitude follows, so that the layer computes
        ``base + scaling * lora_B @ lora_A``.
        """
        factors = [whole(parameter) for parameter in self.parameters()]
        targets = factors if self.expert is None else self._of_expert(*factors)
        for target, value in zip(targets, (lora_A, lora_B), strict=True):
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
    """All update matrices of a LoRA adapter, by module name, sorted.

    Raises:
        TypeError: ``model`` is no ``PeftModel``, or the adapter no LoRA.
        ValueError: no such adapter, nothing adapted, factors tied by ``ensure_weight_tying``, a
            merged adapter, or a layer kind or variant that HRP cannot initialise; the message
            names the module and its kind.
    """
    base_model = _checked(model, adapter_name).get_base_model()
    found: dict[str, LoraModule] = {}
    for path, layer in base_model.named_modules():
        if isinstance(layer, lora.LoraLayer) and adapter_name in layer.r:
            _check_unmerged(path, layer)
            for module in _update_matrices(path, layer, adapter_name):
                found[module.name] = module
    if not found:
        raise ValueError(
            f"adapter {adapter_name!r} has no LoRA module; check its `target_modules` against "
            "`model.named_modules()`"
        )
    return dict(sorted(found.items()))


def _checked(model: object, adapter_name: str) -> PeftModel:
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"`model` must be a PeftModel with a LoRA adapter, got {type(model).__name__}; wrap it "
            "first: `peft.get_peft_model(model, LoraConfig(...))`"
        )
    if adapter_name not in model.peft_config:
        raise ValueError(
            f"`adapter_name` must be one of {sorted(model.peft_config)}, got {adapter_name!r}"
        )
    kind = str(getattr(model.peft_config[adapter_name].peft_type, "value", ""))
    if kind != "LORA":
        raise TypeError(
            f"adapter {adapter_name!r} must be of type LORA, got {kind}; HRP initialises LoRA "
            "factors: use a `peft.LoraConfig`"
        )
    _check_untied(model, adapter_name)
    return model


def _check_untied(model: PeftModel, adapter_name: str) -> None:
    """PEFT ties the first adapter only, as two parameters on one memory until one is moved."""
    tied = getattr(model.peft_config[adapter_name], "target_modules_to_tie", None)
    if tied:
        raise ValueError(
            "`ensure_weight_tying` must be False where `target_modules` cover a tied embedding, "
            f"got True for adapter {adapter_name!r} (tied: {sorted(tied)}): tied factors cannot "
            "be preheated; make the adapter without it, or leave the embedding out"
        )


def _check_unmerged(name: str, layer: lora.LoraLayer) -> None:
    """Activating another adapter unmerges this one; new factors would unmerge as what never was."""
    if layer.merged:
        raise ValueError(
            f"no adapter may be merged, got {layer.merged_adapters} merged into module {name!r}; "
            "call `model.unmerge_adapter()` first"
        )


def _update_matrices(path: str, layer: lora.LoraLayer, adapter_name: str) -> Iterator[LoraModule]:
    name = ".".join(part for part in path.split(".") if part != "base_layer")
    _check_supported(name, layer, adapter_name)
    if not isinstance(layer, lora.ParamWrapper):
        yield LoraModule(name, layer, adapter_name)
        return
    name = f"{name}.{layer.parameter_name}"
    if layer.num_experts == 1:
        yield LoraModule(name, layer, adapter_name)
        return
    for expert in range(layer.num_experts):
        yield LoraModule(f"{name}.{expert}", layer, adapter_name, expert)


def _check_supported(name: str, layer: lora.LoraLayer, adapter_name: str) -> None:
    reason = _refusal(layer, adapter_name)
    if reason:
        raise ValueError(
            f"module {name!r} is {reason}, which HRP cannot initialise; leave it out of the "
            "adapter with `exclude_modules`"
        )


def _refusal(layer: lora.LoraLayer, adapter_name: str) -> str | None:
    base = layer.get_base_layer()
    variant = type(layer.lora_variant.get(adapter_name)).__name__
    if variant not in ("NoneType", *_DORA_VARIANTS):
        return f"of the LoRA variant {variant}"
    if getattr(base, "groups", 1) != 1:
        return f"a grouped {type(base).__name__} (groups={base.groups})"
    if not _has_factors(layer, adapter_name):
        return f"of kind {type(base).__name__} (PEFT's {type(layer).__name__})"
    return None


def _has_factors(layer: lora.LoraLayer, adapter_name: str) -> bool:
    if isinstance(layer, lora.Embedding | lora._ConvNd):
        return True
    holders = layer.lora_A, layer.lora_B
    return all(adapter_name in h and isinstance(h[adapter_name], nn.Linear) for h in holders)


def read_spectrum(modules: dict[str, LoraModule], provenance: dict[str, Any]) -> Spectrum:
    """Spectra of ``scaling * lora_B @ lora_A`` of an adapter's modules, on the CPU.

    Modules of one shape go through the factored SVD together, on the factors' device, at most
    `MODULES_AT_ONCE` of them, so that its working memory stays small.

    Raises:
        PreheatingError: a factor is all zeros (the module was not trained) or not finite.
    """
    spectra: dict[str, ModuleSpectrum] = {}
    for names, factors_A, factors_B in batches_by_shape(modules):
        _check_trained(names, factors_A, factors_B)
        U, S, Vh = (part.cpu() for part in factored_svd(factors_A, factors_B))
        for i, name in enumerate(names):
            scaling = modules[name].scaling
            spectra[name] = ModuleSpectrum(U[i].clone(), S[i] * scaling, Vh[i].clone(), scaling)
    return Spectrum(spectra, provenance)


def batches_by_shape(
    modules: dict[str, LoraModule],
) -> Iterator[tuple[list[str], Float[Tensor, "n rank d_in"], Float[Tensor, "n d_out rank"]]]:
    """Names and stacked factors, float32, of up to `MODULES_AT_ONCE` modules of one shape."""
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    views = {name: module.views() for name, module in modules.items()}
    for name, (lora_A, lora_B) in views.items():
        groups[lora_A.shape, lora_B.shape, lora_A.device].append(name)
    for group in groups.values():
        for start in range(0, len(group), MODULES_AT_ONCE):
            names = group[start : start + MODULES_AT_ONCE]
            yield (
                names,
                torch.stack([views[name][0] for name in names]).float(),
                torch.stack([views[name][1] for name in names]).float(),
            )


def _check_trained(names: list[str], factors_A: Tensor, factors_B: Tensor) -> None:
    for label, factors in (("lora_A", factors_A), ("lora_B", factors_B)):
        largest = factors.abs().amax(dim=(1, 2)).cpu()  # propagates NaN
        for name, value in zip(names, largest.tolist(), strict=True):
            if value == 0:
                raise PreheatingError(
                    f"{label} of module {name!r} is all zeros after preheating: no gradient "
                    "reached it; preheat longer, or leave the module out (`exclude_modules`)"
                )
            if not math.isfinite(value):
                raise PreheatingError(
                    f"{label} of module {name!r} holds NaN or infinity after preheating; lower "
                    "`learning_rate` of the HRPConfig"
                )
