"""What an adapter must be like to be preheated, checked before any training."""

from __future__ import annotations

from peft import PeftModel

from hrp.adapters.layers import LoraModule
from hrp.config import HRPConfig

TEMPORARY_ADAPTER = "hrp_preheating"


def check_preheatable(
    model: PeftModel, adapter_name: str, targets: dict[str, LoraModule], config: HRPConfig
) -> None:
    """Raise ``ValueError`` where the ranks or the adapter's own start do not allow preheating."""
    if TEMPORARY_ADAPTER in model.peft_config:
        raise ValueError(
            f"the model already has an adapter {TEMPORARY_ADAPTER!r}, the name that preheating "
            "needs; delete or rename it"
        )
    _check_active(model, adapter_name, targets)
    for name, module in targets.items():
        check_rank_and_scaling(name, module)
        if config.preheat_rank < module.rank:
            raise ValueError(
                f"`preheat_rank` must be at least the adapter's rank {module.rank}, got "
                f"{config.preheat_rank} for module {name!r}; raise `preheat_rank`"
            )


def _check_active(model: PeftModel, adapter_name: str, targets: dict[str, LoraModule]) -> None:
    """The temporary adapter is trained alone, which is not what several adapters would see."""
    active = list(model.active_adapters)
    if adapter_name in active and len(active) > 1:
        raise ValueError(
            f"only one adapter may be active while preheating, got {active}; preheating would "
            "train without the others: merge them into the base, or activate one alone"
        )
    disabled = next((name for name, one in targets.items() if one.layer.disable_adapters), None)
    if disabled:
        raise ValueError(
            f"adapters must be enabled while preheating, got disabled ones (module {disabled!r}); "
            "leave `disable_adapter()` first"
        )


def check_rank_and_scaling(name: str, module: LoraModule) -> None:
    """Raise ``ValueError`` if the rank is over ``min(d_in, d_out)``, or the scaling not over 0."""
    if not module.scaling > 0:
        raise ValueError(
            f"the scaling must be > 0, got {module.scaling} for module {name!r}; set a positive "
            "`lora_alpha`"
        )
    if module.rank > module.max_rank:
        d_out, d_in = module.shape
        raise ValueError(
            f"the adapter's rank `r` must be at most min(d_in, d_out) = {module.max_rank}, got "
            f"{module.rank} for module {name!r} (d_in {d_in}, d_out {d_out}); lower `r`, or give "
            "the module its own rank in `rank_pattern`"
        )
