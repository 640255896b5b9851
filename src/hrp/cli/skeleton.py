"""Builds a base model without its weights, and a LoRA on it, for `hrp init`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from hrp.adapters.layers import lora_modules
from hrp.initialization import check_match
from hrp.spectra.spectrum import Spectrum

_COUNTS = re.compile("layer|expert|block|depth")
_MOST_MODULES = 10_000


def empty_base(name: str, auto_class: str, trust_remote_code: bool) -> Any:
    """Build the base model's modules without their weights, on PyTorch's meta device."""
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    _check_counts(name, config.to_dict())
    with torch.device("meta"):
        model = getattr(transformers, auto_class).from_config(
            config, trust_remote_code=trust_remote_code
        )
    model.name_or_path = name
    return model


def _check_counts(name: str, config: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for more layers or experts than can be meant; widths take no memory."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_counts(name, value)
        elif isinstance(value, int) and value > _MOST_MODULES and _COUNTS.search(key):
            raise ValueError(f"`{key}` of '{name}' must be at most {_MOST_MODULES}, got {value}")


def spectrum_targets(skeleton: Any, spectrum: Spectrum) -> dict[str, list[str]]:
    """Return ``target_modules`` and ``target_parameters`` that mean just the spectrum's modules.

    Experts stacked in one parameter are adapted together, as that parameter; the spectrum holds
    them one by one, by the parameter's name and their number (`hrp.adapters.layers`).

    Raises:
        ValueError: the base model has no such module.
    """
    modules = {name for name, _ in skeleton.named_modules()}
    parameters = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    stacked = {name: _stack(name, parameters) for name in spectrum if name not in modules}
    unknown = [name for name, stack in stacked.items() if stack not in parameters]
    if unknown:
        raise ValueError(
            f"`spectrum` has {len(unknown)} modules that the base model lacks, such as "
            f"{unknown[:3]}; was it preheated on this model, and for this `--lora_task_type`?"
        )
    targets = {"target_modules": _endings(set(spectrum) - set(stacked), modules, parts=1)}
    if stacked:
        targets["target_parameters"] = _endings(set(stacked.values()), parameters, parts=2)
    return targets


def _stack(name: str, parameters: set[str]) -> str:
    """Return the name of the parameter that a module of a spectrum is, or is one expert of."""
    stack, _, expert = name.rpartition(".")
    return stack if name not in parameters and expert.isdigit() else name


def _endings(wanted: set[str], existing: Iterable[str], parts: int) -> list[str]:
    """Return the names' last parts (``q_proj`` ...) if they mean just those, else whole names."""

    def ending(name: str) -> str:
        return ".".join(name.split(".")[-parts:])

    endings = {ending(name) for name in wanted}
    meant = {name for name in existing if ending(name) in endings}
    return sorted(endings if meant == wanted else wanted)


def covered(skeleton: Any, config: LoraConfig, spectrum: Spectrum) -> Spectrum:
    """Return what an adapter of ``config`` takes of ``spectrum``; all if it takes more than it has.

    (In the latter case `hrp.initialize_lora_hrp_weights` says what is lacking.)
    """
    model = get_peft_model(copy.deepcopy(skeleton), config, low_cpu_mem_usage=True)
    names = lora_modules(model, "default")
    if not set(names) <= set(spectrum):
        return spectrum
    return Spectrum({name: spectrum[name] for name in names}, spectrum.provenance)


def with_adapter(skeleton: Any, config: LoraConfig, spectrum: Spectrum) -> PeftModel:
    """Put a LoRA on the skeleton whose own tensors have memory; those of the base have none.

    Raises:
        ValueError: ``spectrum`` does not fit; no memory has been taken by then.
    """
    model = get_peft_model(skeleton, config, low_cpu_mem_usage=True)
    modules = lora_modules(model, "default")
    check_match(modules, spectrum)
    layers = {id(m.layer): m.layer for m in modules.values()}
    for layer in layers.values():
        for name in layer.adapter_layer_names:
            getattr(layer, name).to_empty(device="cpu")
        layer.reset_lora_parameters("default", init_lora_weights=True)
    return model
