"""Takes what preheating trains beside the factors from the temporary adapter to the real one.

Heads (``modules_to_save``), DoRA magnitudes, biases of ``lora_B`` and trainable token rows. An
update that was learned with one head or one magnitude and is then used with another is not what
was learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from hrp.adapters.checks import TEMPORARY_ADAPTER
from hrp.adapters.layers import LoraModule, lora_modules
from hrp.adapters.sharding import scatter, whole

_FACTORS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
MAGNITUDE = "lora_magnitude_vector"


def read_kept(model: PeftModel, modules: dict[str, LoraModule]) -> dict[str, Tensor]:
    """Return what the temporary adapter has trained beside its factors, on the CPU.

    Names are those of a saved adapter. A DoRA magnitude is stored as its ratio to the norms of the
    rows of ``W + delta_weight``, so that it goes with a truncated update too.
    """
    kept = {
        name: whole(parameter).cpu().clone()
        for name, parameter in _beside_factors(model, TEMPORARY_ADAPTER).items()
    }
    for name, module in modules.items():
        if (ratio := module.magnitude_ratio()) is not None:
            kept[f"{name}.{MAGNITUDE}"] = ratio.cpu()
    return kept


def check_kept(model: PeftModel, adapter_name: str, kept: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` where something kept has another shape than the adapter's own.

    Warns:
        UserWarning: the adapter does not have some of it.
    """
    if not kept:
        return
    beside = _beside_factors(model, adapter_name)
    shapes = {name: whole(parameter).shape for name, parameter in beside.items()}
    for name, module in lora_modules(model, adapter_name).items():
        if (magnitude := module.magnitude()) is not None:
            shapes[f"{name}.{MAGNITUDE}"] = whole(magnitude).shape
    other = [
        f"{name!r}: adapter {tuple(shapes[name])}, spectrum {tuple(value.shape)}"
        for name, value in kept.items()
        if name in shapes and shapes[name] != value.shape
    ]
    if other:
        raise ValueError(
            f"`spectrum` keeps other shapes than the adapter has: {'; '.join(other[:3])}; preheat "
            "with this head, or pass `keep=False` to start it as it is"
        )
    lacking = sorted(set(kept) - set(shapes))
    if lacking:
        warnings.warn(
            f"the adapter has no {lacking[0]!r}"
            + (f" and {len(lacking) - 1} more" if lacking[1:] else "")
            + ", which preheating has trained; the update was learned with it",
            stacklevel=4,
        )


@torch.no_grad()
def write_kept(model: PeftModel, adapter_name: str, kept: Mapping[str, Tensor]) -> None:
    """Give the adapter what was kept, after its factors were written; see `check_kept`."""
    if not kept:
        return
    for name, module in lora_modules(model, adapter_name).items():
        if (ratio := kept.get(f"{name}.{MAGNITUDE}")) is not None:
            module.scale_magnitude(ratio)
    for name, parameter in _beside_factors(model, adapter_name).items():
        if name in kept:
            value = whole(parameter)
            value.copy_(kept[name])
            scatter(parameter, value)


def _beside_factors(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """Return an adapter's parameters but factors and magnitudes, named as in a saved adapter."""
    others = [f".lora_B.{name}." for name in model.peft_config if name != adapter_name]
    parameters = {  # PEFT 0.18 takes the biases of all adapters for those of each
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not any(other in name for other in others)
    }
    state = get_peft_model_state_dict(
        model,
        state_dict=parameters,
        adapter_name=adapter_name,
        save_embedding_layers=False,  # "auto" would add the base's own, and ask the hub
    )
    return {
        name: value for name, value in state.items() if not name.endswith((*_FACTORS, MAGNITUDE))
    }
