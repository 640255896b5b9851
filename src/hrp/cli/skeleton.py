"""Builds the adapter of `hrp init`, on a base model without its weights."""

from __future__ import annotations

import argparse
import copy
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from hrp.adapters.layers import lora_modules
from hrp.adapters.patterns import lora_fields
from hrp.cli.input_checks import check_model, check_targets, mistakes_told
from hrp.cli.modelcard import AUTO_CLASSES
from hrp.initialization import check_match, initialize_lora_hrp_weights
from hrp.spectra.allocation import energy_ranks, kept_energy, parameter_count, uniform_ranks
from hrp.spectra.spectrum import Spectrum

_COUNTS = re.compile("layer|expert|block|depth")
_MOST_MODULES = 10_000


def made_adapter(options: argparse.Namespace, spectrum: Spectrum) -> PeftModel:
    """Return the adapter that the flags of `hrp init` describe, started, on an empty base.

    Raises:
        ValueError: the base, the spectrum and the flags do not go together.
    """
    base = str(options.model_name_or_path or spectrum.provenance.get("base_model") or "")
    if not base:
        raise ValueError("the spectrum names no base model; give `--model_name_or_path`")
    check_model(base)
    auto_class = AUTO_CLASSES[options.lora_task_type]
    with mistakes_told(None, f"--lora_task_type {options.lora_task_type}", base):
        skeleton = empty_base(base, auto_class, options.trust_remote_code)
    model = with_adapter(skeleton, lora_config(options, spectrum, skeleton), spectrum)
    initialize_lora_hrp_weights(
        model, spectrum, options.direction, options.scale, truncation=options.truncation
    )
    lacking = sorted(set(spectrum) - set(lora_modules(model, "default")))
    if lacking and options.lora_target_modules is None:
        raise ValueError(
            f"PEFT does not adapt {len(lacking)} of the spectrum's {len(spectrum)} modules here, "
            f"such as {lacking[:3]}; name those to adapt in `--lora_target_modules`"
        )
    return model


def described(model: PeftModel, spectrum: Spectrum) -> str:
    """Say in one line what adapter it is."""
    modules = lora_modules(model, "default")
    ranks = {name: module.rank for name, module in modules.items()}
    factors = {id(p): p.numel() for module in modules.values() for p in module.parameters()}
    span = sorted(set(ranks.values()))
    shown = f"rank {span[0]}" if len(span) == 1 else f"ranks {span[0]} to {span[-1]}"
    return (
        f"{shown} on {len(ranks)} modules, {sum(factors.values()):,} parameters, "
        f"{kept_energy(spectrum, ranks):.1%} of the preheated energy"
    )


def lora_config(options: argparse.Namespace, spectrum: Spectrum, skeleton: Any) -> LoraConfig:
    """Return the config of the adapter: its target modules and their ranks."""
    alpha, names = options.lora_alpha, options.lora_target_modules
    targets: dict[str, Any] = {"target_modules": names}
    if names == ["all-linear"]:  # which PEFT knows as a word only
        targets = {"target_modules": "all-linear"}
    elif names is None:
        targets = spectrum_targets(skeleton, spectrum)
    else:
        check_targets(names, skeleton)
    if parameters := targets.get("target_parameters"):
        if options.lora_dropout:
            raise ValueError(
                f"`lora_dropout` must be 0 with {parameters} in the spectrum, got "
                f"{options.lora_dropout}: PEFT has no dropout on parameters; pass --lora_dropout 0"
            )
        if options.allocation != "uniform":
            raise ValueError(
                "`--allocation` must be uniform with experts stacked in one parameter, got energy: "
                "PEFT has one rank for all of them"
            )
    settings = {
        "task_type": options.lora_task_type,
        "lora_dropout": options.lora_dropout,
        "use_rslora": options.use_rslora,
        **targets,
    }
    if options.allocation == "uniform":
        alpha = int(alpha) if alpha.is_integer() else alpha
        return LoraConfig(r=options.lora_r, lora_alpha=alpha, **settings)
    part = covered(skeleton, LoraConfig(**settings), spectrum)
    ranks = uniform_ranks(part, options.lora_r)
    chosen = energy_ranks(part, options.rank_budget or parameter_count(part, ranks))
    if options.rank_budget is None:  # whose last direction may not have fitted the budget
        chosen = max(ranks, chosen, key=lambda found: kept_energy(part, found))
    root = math.sqrt(options.lora_r) if options.use_rslora else options.lora_r
    return LoraConfig(**settings, **lora_fields(chosen, alpha / root, options.use_rslora))


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
