"""Sets preheating's learning rates: one for the high-rank factors, one for all else."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from hrp.adapters.checks import TEMPORARY_ADAPTER
from hrp.config import HRPConfig
from hrp.validation import check_positive

_FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True)
class Rates:
    """Holds the learning rates of preheating.

    Args:
        factors: of ``lora_A`` and ``lora_B`` of the temporary adapter.
        others: of what is trained beside them (heads, DoRA magnitudes, token rows), whose size
            does not depend on the rank: fine-tuning's own.
    """

    factors: float
    others: float


def rates_of(own: float, config: HRPConfig, rank: int) -> Rates:
    """Return the rates where ``own`` is that of fine-tuning, or 0 if it is not known.

    The factors take ``config.learning_rate`` or, where it is None, ``own`` times
    ``sqrt(rank / preheat_rank)``, ``rank`` being the real adapter's: at one rate and one scaling a
    step changes the weights the more the higher the rank (docs/choosing.md has the evidence).
    """
    ratio = math.sqrt(min(1.0, rank / config.preheat_rank))
    if config.learning_rate is None:
        check_positive("args.learning_rate", own)
        return Rates(own * ratio, own)
    return Rates(config.learning_rate, own or config.learning_rate / ratio)


def take_both_rates(trainer: Any, rates: Rates) -> None:
    """Let the optimizer that a trainer makes have both rates, and leave frozen factors frozen.

    PEFT makes every parameter of an adapter trainable when it loads the weights of a checkpoint.
    """
    make_optimizer = trainer.create_optimizer
    trainable = [(p, p.requires_grad) for p in trainer.model.parameters()]

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        for parameter, requires_grad in trainable:
            parameter.requires_grad_(requires_grad)
        fresh = trainer.optimizer is None
        optimizer = make_optimizer(*args, **kwargs)
        if fresh:
            split_groups(optimizer, trainer.model, rates)
        return optimizer

    trainer.create_optimizer = create_optimizer


def split_groups(optimizer: Any, model: nn.Module, rates: Rates) -> None:
    """Give the parameters that are no factors a group of their own at the rate ``rates.others``.

    The optimizer must have no state yet.
    """
    others = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not _is_factor(name)
    }
    if not others or rates.others == rates.factors:
        return
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in others]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in others]
            optimizer.add_param_group({**group, "params": moved, "lr": rates.others})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


def _is_factor(name: str) -> bool:
    parts = name.split(".")
    return any(
        part in _FACTORS and following == TEMPORARY_ADAPTER and parts[-1] != "bias"
        for part, following in itertools.pairwise(parts)
    )
