"""Preheats from top to bottom: plan, temporary adapter, train, read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import Trainer, set_seed

from hrp.adapters.bfloat16 import warn_of_slow_bfloat16
from hrp.adapters.casting import casts_left_to_autocast
from hrp.adapters.checks import check_preheatable
from hrp.adapters.interrupts import interrupts_allowed, interrupts_held
from hrp.adapters.kept import read_kept
from hrp.adapters.layers import lora_modules
from hrp.adapters.reading import read_spectrum
from hrp.adapters.restoring import (
    restored_globals,
    restored_loader,
    restored_model,
    restored_trainer,
)
from hrp.adapters.sharding import check_engine
from hrp.adapters.temporary import add_temporary_adapter
from hrp.config import HRPConfig
from hrp.preheating.checkpoints import Checkpoints
from hrp.preheating.plan import adapted_model, check_data, checked_config
from hrp.preheating.progress import Progress, check_outcome
from hrp.preheating.with_dataloader import DataloaderSource, LossFn
from hrp.preheating.with_trainer import TrainerSource, built_trainer
from hrp.spectra.spectrum import Spectrum
from hrp.versions import installed_versions, warn_of_old_versions


def preheat(
    model: nn.Module | Trainer,
    config: HRPConfig | None = None,
    *,
    dataloader: Iterable[Any] | None = None,
    loss_fn: LossFn | None = None,
    trainer_cls: type[Trainer] | None = None,
    adapter_name: str = "default",
    checkpoints: Checkpoints | None = None,
    spend_model: bool = False,
    total_steps: int | None = None,
    learning_rate: float | None = None,
    **trainer_kwargs: Any,
) -> Spectrum:
    """Train a temporary LoRA of rank ``config.preheat_rank`` and return its spectrum.

    The temporary adapter sits on the modules of ``adapter_name``, with their scaling and dropout;
    it is trained ``config.preheat_steps`` optimizer steps (a share: of those of the fine-tuning
    that follows; with "auto": until its leading subspaces settle), read and removed (the paper's
    first two steps, docs/method.md).
    Give the data in one of three ways:

    - a built trainer as ``model``: HF's ``Trainer``, TRL's ``SFTTrainer`` or another subclass,
      before its ``train()``, with its own loss, collator, data, precision, accumulation and
      distribution; afterwards the trainer is as it was;
    - ``trainer_cls`` and the keyword arguments of the real run, ``args`` and ``train_dataset``
      included: the user's own loss, collator, precision, accumulation and distribution;
    - ``dataloader``, and ``loss_fn(model, batch)`` unless ``model(**batch).loss`` is the loss:
      AdamW, gradient norm clipped to 1, on the model's device, through Accelerate. Give
      ``total_steps`` and ``learning_rate`` of the fine-tuning that follows, and the share of steps
      and the rate of preheating follow from them as they do from a trainer's ``args``.

    A compiled or DDP-wrapped PeftModel is unwrapped. ``config`` is `HRPConfig()` where it is None.

    Over the last ``config.statistics_steps`` steps the second moments of what ``lora_A`` gives and
    of its gradient are observed by hooks, for the truncation in the metric of the loss
    (docs/theory.md, P11). What is trained beside the factors is kept with the spectrum: copies of
    ``modules_to_save``, DoRA magnitudes, biases of ``lora_B``, token rows.

    Afterwards, also if training raises or is interrupted, the model is bit for bit as before:
    parameters, buffers, ``requires_grad``, active adapter, train mode; so are the global random
    generators, the dataloader's own, and Accelerate's gradient accumulation.

    With ``checkpoints`` (and a trainer), an interrupted preheating goes on from the last
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
        PreheatingError: training ended early, left a module untrained, or ruined the model.
    """
    warn_of_old_versions()
    config = checked_config(config)
    data = {
        "dataloader": dataloader,
        "loss_fn": loss_fn,
        "trainer_cls": trainer_cls,
        "checkpoints": checkpoints,
        "total_steps": total_steps,
        "learning_rate": learning_rate,
    }
    check_data(model, data, trainer_kwargs)
    adapted = adapted_model(model)
    targets = lora_modules(adapted, adapter_name)
    check_preheatable(adapted, adapter_name, targets, config)
    warn_of_slow_bfloat16(adapted)
    args = model.args if isinstance(model, Trainer) else trainer_kwargs.get("args")
    spent = check_engine(args, spend_model)
    lora = adapted.peft_config[adapter_name]
    with _left_as_found(model, dataloader, spent, config) as scratch:
        # The rest of the plan: where steps come from, how many they are, and at which rates.
        source: DataloaderSource | TrainerSource
        if dataloader is not None:
            source = DataloaderSource(dataloader, loss_fn, total_steps, learning_rate)
        elif trainer_cls is not None:
            trainer = built_trainer(trainer_cls, trainer_kwargs, adapted, config, scratch)
            source = TrainerSource(trainer, scratch, checkpoints)
        else:
            source = TrainerSource(model, scratch, checkpoints)
        config, rates = source.resolved(config, lora)
        set_seed(config.seed)
        modules = add_temporary_adapter(adapted, config, adapter_name, targets)
        progress = Progress(config, modules, targets)
        with casts_left_to_autocast(adapted), progress.followed():
            source.train(adapted, config, rates, progress)
        spectrum = read_spectrum(modules, progress.moments)
        spectrum.kept = read_kept(adapted, modules)
    check_outcome(progress.losses, spectrum, targets, rates.factors)
    spectrum.provenance = {
        "config": config.to_dict(),
        "steps": len(progress.losses),
        "losses": progress.losses,
        "seed": config.seed,
        "base_model": lora.base_model_name_or_path,
        "adapter_name": adapter_name,
        "versions": installed_versions(),
        "learning_rate": rates.factors,
        "unreached": sorted(set(targets) - set(spectrum)),
        "without_metric": [name for name, m in spectrum.items() if not m.has_metric],
        **({"stopping": progress.stopping.to_dict()} if progress.stopping else {}),
    }
    return spectrum


@contextmanager
def _left_as_found(
    model: nn.Module | Trainer, dataloader: object, spent: bool, config: HRPConfig
) -> Iterator[str]:
    """Yield a scratch folder; put back, on exit, whatever training touches in this process.

    These are the model, unless it is ``spent``, the trainer or the dataloader that was given, the
    random generators, and Accelerate's state.
    """
    with (
        interrupts_held(),
        restored_globals(),
        restored_trainer(model) if isinstance(model, Trainer) else restored_loader(dataloader),
        nullcontext() if spent else restored_model(adapted_model(model)),
        tempfile.TemporaryDirectory(prefix="hrp-preheating-") as scratch,
        interrupts_allowed(),
    ):
        try:
            yield scratch
        except torch.OutOfMemoryError as error:
            error.add_note(
                "HRP: memory ran out while preheating; lower `preheat_rank` "
                f"({config.preheat_rank}), the batch size (with gradient accumulation), or use "
                "gradient checkpointing; preheating needs little more than LoRA itself"
            )
            raise
