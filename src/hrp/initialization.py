"""From a spectrum to the start of the real adapter: the only writer of the user's model."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from hrp.adapters.layers import LoraModule, lora_modules
from hrp.adapters.preheatable import check_rank_and_scaling
from hrp.config import Direction, HRPConfig
from hrp.preheating.pipeline import preheat
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum
from hrp.validation import check_choice, check_scale

# Starts that moved part of the base weight into the adapter: other factors would break the sum.
_BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_SHOWN = 3
# TRL's: given a PeftModel, they copy the adapter as it starts, and are held near that copy.
_REFERENCE_TRAINERS = ("DPOTrainer", "GRPOTrainer", "KTOTrainer", "RLOOTrainer")


def initialize_lora_hrp_weights(
    model: PeftModel,
    spectrum: Spectrum,
    direction: Direction = HRPConfig.direction,
    scale: float = 1.0,
    adapter_name: str = "default",
    force: bool = False,
) -> PeftModel:
    """Start a LoRA adapter from the leading singular vectors of a preheated spectrum.

    With r the module's own rank (HRP.md, table under "Words and shapes"):

    - ``"A"`` (the paper's): ``lora_A = scale * Vh[:r]``, ``lora_B = 0``;
    - ``"B"`` (derived, P5): ``lora_B = scale * U[:, :r]``, ``lora_A = 0``;
    - ``"AB"`` (ours): ``scaling * lora_B @ lora_A`` is the preheated update truncated to rank r,
      ``sqrt(S)`` on either side.

    "A" and "B" leave the logits exactly those of the base model. Base weights are never written.
    The adapter's ``init_lora_weights`` becomes True, so that a saved adapter loads as any other.

    Args:
        model: a ``PeftModel``; written in place.
        spectrum: from `preheat`, or `Spectrum.load`; may hold more modules than the adapter.
        direction: which factor carries the direction; HRPConfig's default, "AB".
        scale: norm of the rows of ``lora_A`` ("A") or the columns of ``lora_B`` ("B").
        adapter_name: the adapter to write.
        force: also overwrite an adapter that was trained already.

    Returns:
        ``model``.

    Raises:
        TypeError, ValueError: see `lora_modules`; a spectrum that does not match the
            adapter (modules, shapes, rank); an adapter that was trained, or whose start changed
            the base weights (PiSSA and its like). Nothing is written then.
    """
    check_choice("direction", direction, ("A", "B", "AB"))
    check_scale(scale, direction)
    if not isinstance(spectrum, Spectrum):
        raise TypeError(
            f"`spectrum` must be an `hrp.Spectrum`, got {type(spectrum).__name__}; read a folder "
            "with `hrp.Spectrum.load(folder)`"
        )
    modules = lora_modules(model, adapter_name)
    _check_start(model, adapter_name, modules, force)
    _check_match(modules, spectrum)
    for name, module in modules.items():
        module.write(*_factors(spectrum[name], module, direction, scale))
    model.peft_config[adapter_name].init_lora_weights = True
    return model


def apply_hrp(
    model: PeftModel, config: HRPConfig, *, force: bool = False, **data: Any
) -> PeftModel:
    """Preheat and initialise in one call; ``data`` as for `preheat`. Returns ``model``.

    With ``force`` an adapter that was trained already is overwritten.

    Raises:
        See `preheat`; ValueError before any training for an adapter that
            `initialize_lora_hrp_weights` would refuse after it, and for ``spend_model``, after
            which there is no model to initialise.

    Warns:
        UserWarning: direction "AB" with one of TRL's trainers that take the adapter's start for
            their reference model.
    """
    adapter_name = data.get("adapter_name", "default")
    if data.get("spend_model"):
        raise ValueError(
            "`spend_model` must be False with `apply_hrp`, got True: a spent model cannot be "
            "initialised; save what `preheat` returns and initialise in a second launch"
        )
    _check_start(model, adapter_name, lora_modules(model, adapter_name), force)
    _warn_of_reference(data.get("trainer_cls"), config.direction)
    spectrum = preheat(model, config, **data)
    return initialize_lora_hrp_weights(
        model, spectrum, config.direction, config.scale, adapter_name, force
    )


def _warn_of_reference(trainer_cls: object, direction: Direction) -> None:
    kinds = [kind.__name__ for kind in getattr(trainer_cls, "__mro__", ())]
    if direction == "AB" and (found := next((k for k in kinds if k in _REFERENCE_TRAINERS), None)):
        warnings.warn(
            f"{found} takes the adapter's start for its reference model, and direction 'AB' starts "
            "with the preheated update in it; direction 'B' or 'A' leaves the reference the base",
            stacklevel=3,
        )


def _factors(
    spectrum: ModuleSpectrum, module: LoraModule, direction: Direction, scale: float
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    leading = spectrum.crop(module.rank)
    if direction == "A":
        return scale * leading.Vh, torch.zeros_like(leading.U)
    if direction == "B":
        return torch.zeros_like(leading.Vh), scale * leading.U
    root = (leading.S / module.scaling).sqrt()
    return root[:, None] * leading.Vh, leading.U * root


def _check_start(
    model: PeftModel, adapter_name: str, modules: dict[str, LoraModule], force: bool
) -> None:
    start = model.peft_config[adapter_name].init_lora_weights
    if isinstance(start, str) and start.startswith(_BASE_CHANGING_STARTS):
        raise ValueError(
            f"`init_lora_weights` must be one that leaves the base weights alone, got {start!r} "
            f"for adapter {adapter_name!r}; make the adapter with `init_lora_weights=True`"
        )
    for name, module in modules.items():
        check_rank_and_scaling(name, module)
        if not force and _was_trained(module):
            raise ValueError(
                f"adapter {adapter_name!r} already changes the model (module {name!r}): it was "
                "trained or loaded; pass `force=True` to overwrite it, or add a new adapter"
            )


def _was_trained(module: LoraModule) -> bool:
    """Whether the update is over rounding; ||BA||^2 = tr(B^T B A A^T) needs r x r matrices only."""
    if (bias := module.bias()) is not None and bool(bias.any()):
        return True
    lora_A, lora_B = (factor.double() for factor in module.views())
    gram_A, gram_B = lora_A @ lora_A.mT, lora_B.mT @ lora_B
    bound = gram_A.trace() * gram_B.trace()
    return bool((gram_A * gram_B).sum() > 1e-8 * bound)


def _check_match(modules: dict[str, LoraModule], spectrum: Spectrum) -> None:
    lacking = [name for name in modules if name not in spectrum]
    if lacking:
        raise ValueError(
            f"`spectrum` lacks {len(lacking)} of the adapter's {len(modules)} modules, such as "
            f"{lacking[:_SHOWN]}; it holds {list(spectrum)[:_SHOWN]} and so on: was it preheated "
            "on this model and these `target_modules`?"
        )
    other = [
        f"{name!r}: adapter {module.shape}, spectrum {spectrum[name].shape}"
        for name, module in modules.items()
        if module.shape != spectrum[name].shape
    ]
    if other:
        raise ValueError(
            f"`spectrum` has other shapes (d_out, d_in) than {len(other)} of the adapter's "
            f"modules: {'; '.join(other[:_SHOWN])}; preheat on this model"
        )
    for name, module in modules.items():
        if spectrum[name].rank < module.rank:
            raise ValueError(
                f"`spectrum` must have at least the adapter's rank {module.rank}, got rank "
                f"{spectrum[name].rank} for module {name!r}; preheat with a higher `preheat_rank`"
            )
