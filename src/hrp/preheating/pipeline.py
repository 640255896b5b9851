"""Preheating: a temporary LoRA of high rank, trained for a few steps, read and removed."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import Trainer, set_seed

from hrp.adapters.casting import casts_left_to_autocast
from hrp.adapters.layers import LoraModule, lora_modules, read_spectrum
from hrp.adapters.patterns import exact_patterns
from hrp.adapters.preheatable import TEMPORARY_ADAPTER, check_preheatable
from hrp.adapters.restoring import (
    restored_accumulation,
    restored_generators,
    restored_model,
    restored_rng,
)
from hrp.adapters.sharding import check_engine
from hrp.config import HRPConfig
from hrp.preheating.checkpoints import Checkpoints
from hrp.preheating.length import of_dataloader, of_trainer
from hrp.preheating.stopping import SubspaceStopping
from hrp.preheating.trainer_arguments import (
    check_not_empty,
    check_trainer_arguments,
    check_training_arguments,
    with_preheating_rate,
)
from hrp.preheating.training import (
    DEFAULT_LEARNING_RATE,
    LossFn,
    train_with_dataloader,
    train_with_trainer,
)
from hrp.spectra.spectrum import Spectrum
from hrp.versions import installed_versions

logger = logging.getLogger(__name__)

# Fields of the real adapter's config that say *where* LoRA goes; how it starts is preheating's.
_PLACEMENT_FIELDS = (
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
)


def preheat(
    model: PeftModel,
    config: HRPConfig,
    *,
    dataloader: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    trainer_cls: type[Trainer] | None = None,
    adapter_name: str = "default",
    checkpoints: Checkpoints | None = None,
    spend_model: bool = False,
    **trainer_kwargs: Any,
) -> Spectrum:
    """Train a temporary LoRA of rank ``config.preheat_rank`` and return its spectrum.

    The temporary adapter sits on the modules of ``adapter_name``, with their scaling and dropout;
    it is trained ``config.preheat_steps`` optimizer steps (a share: of those that the trainer's
    ``args`` ask for; with "auto": until its leading subspaces settle), read and removed (the
    paper's first two steps, HRP.md "The algorithm").
    Give the data in one of two ways:

    - ``trainer_cls`` and the keyword arguments of the real run, ``args`` and ``train_dataset``
      included: the user's own loss, collator, precision, accumulation and distribution;
    - ``dataloader``, and ``loss_fn(model, batch)`` unless ``model(**batch).loss`` is the loss:
      AdamW, gradient norm clipped to 1, on the model's device, through Accelerate.

    Afterwards, also if training raises or is interrupted, the model is bit for bit as before:
    parameters, buffers, ``requires_grad``, active adapter, train mode; so are the global random
    generators, the dataloader's own, and Accelerate's gradient accumulation. ``modules_to_save``
    are trained along on a copy that is dropped. DoRA adapters are preheated as plain LoRA: only
    the direction is sought.

    With ``checkpoints`` (and ``trainer_cls``), an interrupted preheating goes on from the last
    complete checkpoint in that folder, to the same spectrum; the caller removes the folder.

    With several processes all ranks call this and all get the same spectrum; let one save it.
    FSDP2 and DeepSpeed shard the model for good: there ``spend_model`` must be true, and the model
    is of no use afterwards (docs/distributed.md: two launches). Elsewhere it has no effect.

    Returns:
        The spectrum of ``scaling * lora_B @ lora_A`` by module, float32, on the CPU.

    Raises:
        TypeError: ``model`` is no PeftModel, the adapter no LoRA, ``trainer_cls`` no Trainer,
            ``config`` no HRPConfig.
        ValueError: unknown adapter, unsupported layer, ranks that do not fit, both or none of
            ``dataloader`` and ``trainer_cls``, empty data, a batch without loss, a share of a run
            whose length is not known, FSDP or DeepSpeed.
        NonFiniteLossError: NaN or infinite loss, with its step.
        PreheatingError: training ended early, or left a module untrained.
    """
    _check_data(config, dataloader, loss_fn, trainer_cls, trainer_kwargs)
    spent = check_engine(trainer_kwargs.get("args"), spend_model) is not None
    if checkpoints is not None and trainer_cls is None:
        raise ValueError("`checkpoints` go with `trainer_cls`; a dataloader cannot be resumed")
    targets = lora_modules(model, adapter_name)
    check_preheatable(model, adapter_name, targets, config)
    if trainer_cls is None:
        config = of_dataloader(config)
    else:
        real, lora = trainer_kwargs, model.peft_config[adapter_name]
        config = of_trainer(config, real["args"], real["train_dataset"], lora)
    restored = nullcontext() if spent else restored_model(model)
    surroundings = restored_rng(), restored_accumulation(), restored_generators(dataloader)
    with ExitStack() as stack:
        for context in (*surroundings, restored, _memory_hint(config)):
            stack.enter_context(context)
        set_seed(config.seed)
        with _temporary_adapter(model, config, adapter_name, targets) as modules:
            stopping = None
            if config.preheat_steps == "auto":
                ranks = {name: module.rank for name, module in targets.items()}
                stopping = SubspaceStopping(config, modules, ranks)
            rate = config.learning_rate or DEFAULT_LEARNING_RATE
            with casts_left_to_autocast(model):
                if dataloader is not None:
                    losses = train_with_dataloader(
                        model, config, dataloader, loss_fn, rate, stopping
                    )
                else:
                    rank = int(model.peft_config[adapter_name].r)
                    trainer_kwargs = with_preheating_rate(trainer_kwargs, config, rank)
                    rate = trainer_kwargs["args"].learning_rate
                    losses = train_with_trainer(
                        model, config, trainer_cls, trainer_kwargs, stopping, checkpoints
                    )
            provenance = _provenance(model, config, adapter_name, losses)
            provenance["learning_rate"] = rate
            if stopping is not None:
                provenance["stopping"] = stopping.to_dict()
            return read_spectrum(modules, provenance)


@contextmanager
def _memory_hint(config: HRPConfig) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        error.add_note(
            "HRP: memory ran out while preheating; lower "
            f"`preheat_rank` ({config.preheat_rank}), the batch size (with gradient accumulation), "
            "or use gradient checkpointing; preheating needs little more than LoRA itself"
        )
        raise


def _check_data(
    config: object,
    dataloader: object,
    loss_fn: object,
    trainer_cls: object,
    trainer_kwargs: dict[str, Any],
) -> None:
    if not isinstance(config, HRPConfig):
        raise TypeError(f"`config` must be an `hrp.HRPConfig`, got {type(config).__name__}")
    if (dataloader is None) == (trainer_cls is None):
        given = "neither" if dataloader is None else "both"
        raise ValueError(
            f"exactly one of `dataloader` and `trainer_cls` must be given, got {given}"
        )
    if trainer_cls is not None:
        if loss_fn is not None:
            raise ValueError(
                "`loss_fn` goes with `dataloader`; a trainer has its own loss (`compute_loss_func`)"
            )
        check_trainer_arguments(trainer_cls, trainer_kwargs)
        check_training_arguments(trainer_kwargs["args"], config.learning_rate)
        return
    if trainer_kwargs:
        raise TypeError(f"{sorted(trainer_kwargs)} go with `trainer_cls`, not with `dataloader`")
    if isinstance(dataloader, str):
        raise TypeError(f"`dataloader` must give batches, got the string {dataloader!r}")
    check_not_empty("dataloader", dataloader)


@contextmanager
def _temporary_adapter(
    model: PeftModel, config: HRPConfig, adapter_name: str, targets: dict[str, LoraModule]
) -> Iterator[dict[str, LoraModule]]:
    """Add and activate the high-rank adapter; `restored_model` around this removes it."""
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
    _start(modules, config)
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
    # A deep copy: PEFT extends the lists that it is given.
    placement = {field: copy.deepcopy(getattr(real, field)) for field in _PLACEMENT_FIELDS}
    return LoraConfig(
        **placement,
        r=config.preheat_rank,
        lora_alpha=config.preheat_rank,
        rank_pattern=exact_patterns(capped, {one.pattern_key for one in targets.values()}),
    )


@torch.no_grad()
def _start(modules: dict[str, LoraModule], config: HRPConfig) -> None:
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


def _provenance(
    model: PeftModel, config: HRPConfig, adapter_name: str, losses: list[float]
) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "steps": len(losses),
        "losses": losses,
        "seed": config.seed,
        "base_model": model.peft_config[adapter_name].base_model_name_or_path,
        "adapter_name": adapter_name,
        "versions": installed_versions(),
    }
