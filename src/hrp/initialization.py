"""Starts the real adapter from a spectrum; nothing else writes the user's model."""

from __future__ import annotations

import logging
import warnings
from typing import Any, TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Trainer

from hrp.adapters.checks import check_startable
from hrp.adapters.kept import check_kept, write_kept
from hrp.adapters.layers import LoraModule, lora_modules
from hrp.config import Direction, HRPConfig, Truncation
from hrp.preheating.pipeline import preheat
from hrp.preheating.plan import adapted_model, checked_config
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum
from hrp.validation import check_choice, check_scale

Model = TypeVar("Model", bound=nn.Module)

logger = logging.getLogger(__name__)

_SHOWN = 3
# TRL's trainers that copy a PeftModel's adapter as it starts, and hold training near the copy.
_REFERENCE_TRAINERS = {"DPOTrainer", "GRPOTrainer", "KTOTrainer", "RLOOTrainer"}


def initialize_lora_hrp_weights(
    model: Model,
    spectrum: Spectrum,
    direction: Direction = HRPConfig.direction,
    scale: float = 1.0,
    adapter_name: str = "default",
    force: bool = False,
    truncation: Truncation = HRPConfig.truncation,
    keep: bool = True,
) -> Model:
    """Start a LoRA adapter from a preheated spectrum, cut to the adapter's rank.

    With r the module's own rank, and ``U, S, Vh`` of the update cut to rank r (docs/method.md):

    - ``"A"`` (the paper's): ``lora_A = scale * Vh``, ``lora_B = 0``;
    - ``"B"`` (derived, P5): ``lora_B = scale * U``, ``lora_A = 0``;
    - ``"AB"`` (ours): ``scaling * lora_B @ lora_A = U diag(S) Vh``, ``sqrt(S)`` on either side, and
      what preheating has trained beside the factors.

    "A" and "B" leave the logits exactly those of the base model. Base weights are never written.
    Modules that no gradient had reached while preheating keep PEFT's start, and so do, with zeros
    in one factor, directions over a module's ``min(d_in, d_out)``. The adapter's
    ``init_lora_weights`` becomes True, so that a saved adapter loads as any other.

    Args:
        model: a ``PeftModel``, also compiled or wrapped by DDP; written in place.
        spectrum: from `preheat`, or `Spectrum.load`; may hold more modules than the adapter.
        direction: which factor carries the direction; HRPConfig's default, "AB".
        scale: norm of the rows of ``lora_A`` ("A") or the columns of ``lora_B`` ("B").
        adapter_name: the adapter to write.
        force: also overwrite an adapter that was trained already.
        truncation: ``"loss"`` cuts in the metric of the loss (docs/theory.md, P11) where the
            spectrum has it, ``"frobenius"`` by the plain SVD.
        keep: whether "AB" takes heads, DoRA magnitudes, biases and token rows from ``spectrum``.

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
    check_choice("truncation", truncation, get_args(Truncation))
    peft_model = adapted_model(model)
    modules = lora_modules(peft_model, adapter_name)
    check_startable(peft_model, adapter_name, modules, force)
    modules = check_match(modules, spectrum)
    kept = spectrum.kept if keep and direction == "AB" else {}
    check_kept(peft_model, adapter_name, kept)
    ranks = {name: module.useful_rank for name, module in modules.items()}
    over = [name for name, module in modules.items() if module.rank > module.max_rank]
    if over:
        logger.warning(
            "the adapter's rank is over min(d_in, d_out) on %d of %d modules, such as %r; the "
            "directions beyond start with no update",
            len(over),
            len(modules),
            over[0],
        )
    device = next((module.device for module in modules.values()), "cpu")
    cut = spectrum.truncated(ranks, truncation, device=device)
    for name, module in modules.items():
        module.write(*_factors(cut[name], module, direction, scale))
    write_kept(peft_model, adapter_name, kept)
    peft_model.peft_config[adapter_name].init_lora_weights = True
    return model


def apply_hrp(
    model: nn.Module | Trainer,
    config: HRPConfig | None = None,
    *,
    force: bool = False,
    **data: Any,
) -> Any:
    """Preheat and initialise in one call; ``model``, ``config`` and ``data`` as for `preheat`.

    With a built trainer nothing else is needed: ``hrp.apply_hrp(trainer)``, then
    ``trainer.train()``. With ``force`` an adapter that was trained already is overwritten.

    Returns:
        ``model``, or the model of the trainer.

    Raises:
        See `preheat`; ValueError before any training for an adapter that
            `initialize_lora_hrp_weights` would refuse after it, and for ``spend_model``, after
            which there is no model to initialise.

    Warns:
        UserWarning: direction "AB" with the class of one of TRL's trainers that take the adapter's
            start for their reference model. A built one has taken its reference before.
    """
    adapter_name = data.get("adapter_name", "default")
    if data.get("spend_model"):
        raise ValueError(
            "`spend_model` must be False with `apply_hrp`, got True: a spent model cannot be "
            "initialised; save what `preheat` returns and initialise in a second launch"
        )
    config = checked_config(config)
    peft_model = adapted_model(model)
    check_startable(peft_model, adapter_name, lora_modules(peft_model, adapter_name), force)
    kinds = {kind.__name__ for kind in getattr(data.get("trainer_cls"), "__mro__", ())}
    if config.direction == "AB" and (found := sorted(kinds & _REFERENCE_TRAINERS)):
        warnings.warn(
            f"{found[0]} takes the adapter's start for its reference model, and direction 'AB' "
            "starts with the preheated update in it; direction 'B' or 'A' leaves the reference the "
            "base",
            stacklevel=2,
        )
    spectrum = preheat(model, config, **data)
    return initialize_lora_hrp_weights(
        model.model if isinstance(model, Trainer) else model,
        spectrum,
        config.direction,
        config.scale,
        adapter_name,
        force,
        config.truncation,
        config.keep,
    )


def _factors(
    cut: ModuleSpectrum, module: LoraModule, direction: Direction, scale: float
) -> tuple[Float[Tensor, "rank d_in"], Float[Tensor, "d_out rank"]]:
    """Return (lora_A, lora_B) made of the update that was cut to the module's rank."""
    if direction == "A":
        return scale * cut.Vh, torch.zeros_like(cut.U)
    if direction == "B":
        return torch.zeros_like(cut.Vh), scale * cut.U
    root = (cut.S / module.scaling).sqrt()
    return root[:, None] * cut.Vh, cut.U * root


def check_match(modules: dict[str, LoraModule], spectrum: Spectrum) -> dict[str, LoraModule]:
    """Return the modules that ``spectrum`` can start: all that a gradient had reached.

    Raises ``ValueError`` where it lacks one of them, or holds it in another shape or a lower rank.
    """
    unreached = spectrum.provenance.get("unreached", ())
    modules = {name: module for name, module in modules.items() if name not in unreached}
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
        if spectrum[name].rank < module.useful_rank:
            raise ValueError(
                f"`spectrum` must have at least the adapter's rank {module.useful_rank}, got rank "
                f"{spectrum[name].rank} for module {name!r}; preheat with a higher `preheat_rank`"
            )
    return modules
