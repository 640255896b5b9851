"""Adds the temporary high-rank adapter that preheating trains, beside the user's own."""

from __future__ import annotations

import copy
import math

import torch
from peft import LoraConfig, PeftModel

from hrp.adapters.checks import TEMPORARY_ADAPTER
from hrp.adapters.layers import LoraModule, lora_modules
from hrp.adapters.patterns import exact_patterns
from hrp.config import HRPConfig

# The temporary adapter shares these with the real one: *where* LoRA goes and what is trained beside
# it. How it starts, preheating decides.
_SHARED_FIELDS = (
    "base_model_name_or_path",
    "task_type",
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "layers_to_transform",
    "layers_pattern",
    "fan_in_fan_out",
    "modules_to_save",
    "trainable_token_indices",
    "ensure_weight_tying",
    "lora_dropout",
    "lora_bias",
    "use_dora",
)


def add_temporary_adapter(
    model: PeftModel, config: HRPConfig, adapter_name: str, targets: dict[str, LoraModule]
) -> dict[str, LoraModule]:
    """Add and activate a LoRA of rank ``config.preheat_rank`` on the modules of ``adapter_name``.

    It has their scaling and dropout, and trains along what they train along: copies of
    ``modules_to_save``, DoRA magnitudes, biases of ``lora_B``, token rows. All else is frozen.
    `hrp.adapters.restoring.restored_model` around this removes it.

    Raises:
        ValueError: the adapter's ``LoraConfig`` no longer names the modules that it sits on.
    """
    rank, real = config.preheat_rank, model.peft_config[adapter_name]
    keys = {module.pattern_key: module.max_rank for module in targets.values()}
    capped = {key: max_rank for key, max_rank in keys.items() if max_rank < rank}
    # This is a deep copy, since PEFT extends the lists that it is given.
    shared = {field: copy.deepcopy(getattr(real, field)) for field in _SHARED_FIELDS}
    patterns = exact_patterns(capped, keys)
    lora_config = LoraConfig(**shared, r=rank, lora_alpha=rank, rank_pattern=patterns)
    model.add_adapter(TEMPORARY_ADAPTER, lora_config)
    modules = lora_modules(model, TEMPORARY_ADAPTER)
    if set(modules) != set(targets):
        differing = sorted(set(modules) ^ set(targets))[:3]
        raise ValueError(
            f"the temporary adapter does not sit on the modules of {adapter_name!r}: {differing}; "
            "its LoraConfig must still name the modules that it was made with"
        )
    for name, module in modules.items():
        module.layer.scaling[TEMPORARY_ADAPTER] = targets[name].scaling
    model.requires_grad_(False)
    model.set_adapter(TEMPORARY_ADAPTER)
    if config.train_factors != "both":
        _freeze_factor(modules, config)
    return modules


@torch.no_grad()
def _freeze_factor(modules: dict[str, LoraModule], config: HRPConfig) -> None:
    """Freeze one factor at a random start; the trained one starts at zero.

    The random factor is that of PEFT's default, mirrored where it is ``lora_B``: uniform, with
    rows of ``lora_A`` or columns of ``lora_B`` of expected squared norm 1/3.
    """
    for module in modules.values():
        d_out, d_in = module.shape
        random_A = torch.empty(module.rank, d_in).uniform_(-1, 1) / math.sqrt(d_in)
        random_B = torch.empty(d_out, module.rank).uniform_(-1, 1) / math.sqrt(d_out)
        lora_A, lora_B = module.parameters()
        if config.train_factors == "A":
            module.write(torch.zeros_like(random_A), random_B)
            lora_B.requires_grad_(False)
        else:
            module.write(random_A, torch.zeros_like(random_B))
            lora_A.requires_grad_(False)
