"""Checks an adapter before it is preheated or started, while nothing has been trained."""

from __future__ import annotations

from peft import PeftModel

from hrp.adapters.layers import LoraModule
from hrp.config import HRPConfig

TEMPORARY_ADAPTER = "hrp_preheating"

HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights``, in small letters, that leave the base weights alone.

All others move a part of the base weight into the adapter (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA), or
are not known to leave it: other factors would break the sum.
"""


def check_preheatable(
    model: PeftModel, adapter_name: str, modules: dict[str, LoraModule], config: HRPConfig
) -> None:
    """Raise ``ValueError`` where the ranks or the adapter's own start do not allow preheating."""
    if TEMPORARY_ADAPTER in model.peft_config:
        raise ValueError(
            f"the model already has an adapter {TEMPORARY_ADAPTER!r}, the name that preheating "
            "needs; delete or rename it"
        )
    check_startable(model, adapter_name, modules)
    # Preheating trains the temporary adapter without the others.
    active = list(model.active_adapters)
    if adapter_name in active and len(active) > 1:
        raise ValueError(
            f"only one adapter may be active while preheating, got {active}; preheating would "
            "train without the others: merge them into the base, or activate one alone"
        )
    disabled = next((name for name, m in modules.items() if m.layer.disable_adapters), None)
    if disabled:
        raise ValueError(
            f"adapters must be enabled while preheating, got disabled ones (module {disabled!r}); "
            "leave `disable_adapter()` first"
        )
    for name, module in modules.items():
        if config.preheat_rank < module.useful_rank:
            raise ValueError(
                f"`preheat_rank` must be at least the adapter's rank {module.useful_rank}, got "
                f"{config.preheat_rank} for module {name!r}; raise `preheat_rank`"
            )


def check_startable(
    model: PeftModel, adapter_name: str, modules: dict[str, LoraModule], force: bool = True
) -> None:
    """Raise ``ValueError`` unless the adapter can be started without harm.

    Its own start must leave the base weights alone, its factors be in memory and its scaling be
    positive. Without ``force`` it must not change the model already, as that would be lost.
    """
    start = model.peft_config[adapter_name].init_lora_weights
    if (start.lower() if isinstance(start, str) else start) not in HARMLESS_STARTS:
        raise ValueError(
            f"`init_lora_weights` must be one of {HARMLESS_STARTS}, which leave the base weights "
            f"alone, got {start!r} for adapter {adapter_name!r}; make the adapter with "
            "`init_lora_weights=True`"
        )
    for name, module in modules.items():
        if module.device.type == "meta":
            raise ValueError(
                f"adapter {adapter_name!r} must be in memory, got the meta device for module "
                f"{name!r}; make it without `low_cpu_mem_usage=True`"
            )
        if not module.scaling > 0:
            raise ValueError(
                f"the scaling must be > 0, got {module.scaling} for module {name!r}; set a "
                "positive `lora_alpha`"
            )
        if not force and _is_update(module):
            raise ValueError(
                f"adapter {adapter_name!r} already changes the model (module {name!r}): it was "
                "trained or loaded; pass `force=True` to overwrite it, or add a new adapter"
            )


def _is_update(module: LoraModule) -> bool:
    """Return whether the update is over rounding; ||BA||^2 = tr(B^T B A A^T) takes r x r only."""
    if (bias := module.bias()) is not None and bool(bias.any()):
        return True
    lora_A, lora_B = (factor.double() for factor in module.matrices())
    gram_A, gram_B = lora_A @ lora_A.mT, lora_B.mT @ lora_B
    bound = gram_A.trace() * gram_B.trace()
    return bool((gram_A * gram_B).sum() > 1e-8 * bound)
