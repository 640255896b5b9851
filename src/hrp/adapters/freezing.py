"""Freezes one factor for asymmetric LoRA, in which only the other is fine-tuned."""

from __future__ import annotations

from typing import Literal

from peft import PeftModel

from hrp.adapters.layers import lora_modules
from hrp.validation import check_choice


def freeze_factor(
    model: PeftModel, factor: Literal["A", "B"], adapter_name: str = "default"
) -> PeftModel:
    """Freeze ``lora_A`` or ``lora_B`` of an adapter; call it before the optimizer is made.

    With direction "A" freeze "A" (the start of docs/theory.md, T1 and P4), with "B" freeze "B":
    the frozen factor then carries the preheated direction to the end. The other way round nothing
    would train, as the factor left would be multiplied by zeros for ever. PEFT's ``set_adapter``
    makes both factors trainable again: freeze after it.

    Returns:
        ``model``.

    Raises:
        TypeError, ValueError: see `lora_modules`; an unknown ``factor``; a factor that
            is all zeros, frozen at which the adapter could never leave zero.
    """
    check_choice("factor", factor, ("A", "B"))
    modules = lora_modules(model, adapter_name)
    frozen = {name: module.parameters()["AB".index(factor)] for name, module in modules.items()}
    for name, parameter in frozen.items():
        if not parameter.any():
            raise ValueError(
                f"`factor` {factor!r} must not be all zeros, got zeros in module {name!r}: frozen "
                f"there the adapter stays a no-op; start it with direction {factor!r} first"
            )
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    return model
