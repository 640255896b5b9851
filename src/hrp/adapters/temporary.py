"""Adds the temporary high-rank adapter that preheating trains, beside the user's own."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, PeftModel

from hrp.adapters.checks import TEMPORARY_ADAPTER
from hrp.adapters.layers import LoraModule, lora_modules
from hrp.adapters.patterns import exact_patterns
from hrp.config import HRPConfig

logger = logging.getLogger(__name__)

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


@contextmanager
def temporary_adapter(
    model: PeftModel, config: HRPConfig, adapter_name: str, targets: dict[str, LoraModule]
) -> Iterator[dict[str, LoraModule]]:
    """Add and activate a LoRA of rank ``config.preheat_rank`` on the modules of ``adapter_name``.

    It has their scaling and dropout, and trains along what they train along: copies of
    ``modules_to_save``, DoRA magnitudes, biases of ``lora_B``, token rows. It stays there on exit:
    `hrp.adapters.restoring.restored_model` around this removes it.

    Raises:
        ValueError: the adapter's ``LoraConfig`` no longer names the modules that it sits on.
    """
    lora_config = _temporary_config(model.peft_config[adapter_name], config, targets)
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
    _freeze_factor(modules, config)
    yield modules


def _temporary_config(
    real: LoraConfig, config: HRPConfig, targets: dict[str, LoraModule]
) -> LoraConfig:
    capped = {
        module.pattern_key: module.max_rank
        for module in targets.values()
        if module.max_rank < config.preheat_rank
    }
    if capped:
        logger.info(
            "`preheat_rank` %d is capped at min(d_in, d_out) on %d module(s), such as %r",
            config.preheat_rank,
            len(capped),
            next(iter(capped)),
        )
    # This is a deep copy, since PEFT extends the lists that it is given.
    shared = {field: copy.deepcopy(getattr(real, field)) for field in _SHARED_FIELDS}
    return LoraConfig(
        **shared,
        r=config.preheat_rank,
        lora_alpha=config.preheat_rank,
        rank_pattern=exact_patterns(capped, {module.pattern_key for module in targets.values()}),
    )


@torch.no_grad()
def _freeze_factor(modules: dict[str, LoraModule], config: HRPConfig) -> None:
    """Freeze one factor at a random start, the trained one at zero; "both" keeps PEFT's start.

    The random factor is that of PEFT's default, mirrored where it is ``lora_B``: uniform, with
    rows of ``lora_A`` or columns of ``lora_B`` of expected squared norm 1/3.
    """
    if config.train_factors == "both":
        return
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
