"""Plans one preheating: makes every check, resolves every number, touches nothing yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers import Trainer

from hrp.adapters.checks import check_preheatable
from hrp.adapters.layers import LoraModule, lora_modules
from hrp.adapters.sharding import check_engine
from hrp.config import HRPConfig
from hrp.preheating.rates import Rates
from hrp.preheating.with_built_trainer import BuiltTrainerSource
from hrp.preheating.with_dataloader import DataloaderSource
from hrp.preheating.with_trainer import TrainerSource

Source = DataloaderSource | TrainerSource | BuiltTrainerSource
"""Where the steps of preheating come from."""


@dataclass(frozen=True)
class Plan:
    """Says what preheating will do.

    Args:
        model: with the user's adapter on it.
        adapter_name: the adapter to be started.
        modules: its update matrices, by module name.
        config: with a number of steps, or "auto".
        rates: learning rates of what preheating trains.
        spent: whether an engine will shard the model for good.
    """

    model: PeftModel
    adapter_name: str
    modules: dict[str, LoraModule]
    config: HRPConfig
    rates: Rates
    spent: bool

    @property
    def ranks(self) -> dict[str, int]:
        """Return how many directions the user's adapter can have, by module name."""
        return {name: module.useful_rank for name, module in self.modules.items()}


def make_plan(
    model: PeftModel, config: HRPConfig, source: Source, adapter_name: str, spend_model: bool
) -> Plan:
    """Check the adapter against the settings and resolve steps and rates; see `preheat`."""
    spent = check_engine(source.args, spend_model) is not None
    modules = lora_modules(model, adapter_name)
    check_preheatable(model, adapter_name, modules, config)
    lora = model.peft_config[adapter_name]
    config = source.with_steps(config, lora)
    rates = source.rates(config, int(lora.r))
    return Plan(model, adapter_name, modules, config, rates, spent)


def checked_config(config: HRPConfig | None) -> HRPConfig:
    """Return ``config``, or the default where it is None; raises ``TypeError`` on anything else."""
    if config is None:
        return HRPConfig()
    if not isinstance(config, HRPConfig):
        raise TypeError(f"`config` must be an `hrp.HRPConfig`, got {type(config).__name__}")
    return config


def adapted_model(model: Any) -> Any:
    """Return the PeftModel inside a built trainer, a compiled or a DDP-wrapped model."""
    if isinstance(model, Trainer):
        model = model.model
    if isinstance(model, nn.Module):
        model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model


def make_source(model: Any, data: dict[str, Any], trainer_kwargs: dict[str, Any]) -> Source:
    """Return the one source of steps that `preheat` was given, its arguments checked.

    Args:
        model: a built trainer is a source in itself.
        data: the other arguments of `preheat` about data, by name, also those not given.
        trainer_kwargs: arguments of the trainer of ``trainer_cls``.

    Raises:
        TypeError, ValueError: there is none, there are two, or an argument goes with the other one.
    """
    if isinstance(model, Trainer):
        beside = {k: v for k, v in (data | trainer_kwargs).items() if v is not None}
        if beside:
            raise TypeError(f"{sorted(beside)} go with a model; a built trainer has its own data")
        return BuiltTrainerSource(model)
    dataloader, trainer_cls = data["dataloader"], data["trainer_cls"]
    if (dataloader is None) == (trainer_cls is None):
        given = "neither" if dataloader is None else "both"
        raise ValueError(
            f"exactly one of `dataloader` and `trainer_cls` must be given, got {given}"
        )
    if dataloader is not None:
        if data["checkpoints"] is not None:
            raise ValueError("`checkpoints` go with `trainer_cls`; a dataloader cannot be resumed")
        if trainer_kwargs:
            raise TypeError(f"{sorted(trainer_kwargs)} go with `trainer_cls`, not `dataloader`")
        return DataloaderSource(
            dataloader, data["loss_fn"], data["total_steps"], data["learning_rate"]
        )
    if data["loss_fn"] is not None:
        raise ValueError(
            "`loss_fn` goes with `dataloader`; a trainer has its own loss (`compute_loss_func`)"
        )
    for name in ("total_steps", "learning_rate"):
        if data[name] is not None:
            raise ValueError(f"`{name}` goes with `dataloader`; a trainer's `args` have their own")
    return TrainerSource(trainer_cls, trainer_kwargs, data["checkpoints"])
