"""Does the whole job of `hrp sft` and `hrp finetune`: preheat, initialise, fine-tune, save."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from hrp.adapters.checks import check_preheatable
from hrp.adapters.layers import lora_modules
from hrp.cli.modelcard import CardFacts, card
from hrp.cli.outputs import Output
from hrp.cli.report import write_own_page
from hrp.cli.trainers import warn_of_repeats
from hrp.config import HRPConfig
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating.checkpoints import (
    Checkpoints,
    CompletionMarker,
    checkpoint_step,
    last_complete,
    made_by,
)
from hrp.preheating.pipeline import preheat
from hrp.preheating.rates import rates_of
from hrp.preheating.with_trainer import of_trainer
from hrp.spectra.allocation import parameter_count
from hrp.spectra.spectrum import Spectrum

LOSS_NAME = "preheat/loss"
_REPORTERS = "transformers.integrations"
STATE = "trainer_state.json"


@dataclass(frozen=True)
class Job:
    """Describes what to train.

    Args:
        trainer: of the real run, its model a ``PeftModel``.
        preheating: ``trainer_cls`` and the other keyword arguments that `hrp.preheat` takes.
        config: of HRP.
        save_steps: steps between two checkpoints of preheating.
    """

    trainer: Any
    preheating: dict[str, Any]
    config: HRPConfig
    save_steps: int


def run(job: Job, output: Output, given: Spectrum | None, data: str) -> None:
    """Carry out ``job`` into ``output``, going on with what an interrupted run left there.

    With a spectrum ``given``, the adapter starts from it already (`start`).

    Raises:
        ValueError: what `hrp.preheat` and `hrp.initialize_lora_hrp_weights` refuse.
        PreheatingError: preheating failed.
        OSError: the output cannot be written; what is there is not half a result.
    """
    trainer = job.trainer
    spectrum = _own_spectrum(job, output) if given is None else given
    finetune(trainer, output.folder)
    _publish(job, output, spectrum, data)
    trainer.accelerator.print(f"Adapter saved to {output.folder}")
    if trainer.is_world_process_zero() and (page := write_own_page(output.folder)):
        print(f"What the run did: {page}")


def _own_spectrum(job: Job, output: Output) -> Spectrum:
    """Preheat, unless an interrupted run has done so, and start the adapter from what was found."""
    checkpoints = Checkpoints(output.folder, job.save_steps)
    if not output.spectrum.exists():
        preheat_into(job, output.spectrum, checkpoints, {"run": output.run()})
    elif job.trainer.is_world_process_zero():
        checkpoints.remove()  # left by a run that was killed right after saving
    spectrum = Spectrum.load(output.spectrum)
    start(job, spectrum, output.spectrum)
    return spectrum


def start(job: Job, spectrum: Spectrum, folder: Path) -> None:
    """Start the adapter from ``spectrum``, read in ``folder``; ``ValueError`` if they don't fit."""
    trainer, config = job.trainer, job.config
    initialize_lora_hrp_weights(
        trainer.model,
        spectrum,
        config.direction,
        config.scale,
        truncation=config.truncation,
        keep=config.keep,
    )
    trainer.accelerator.print(f"LoRA starts from {folder}, direction {config.direction}")


def with_steps(job: Job, interrupted: Path | None) -> Job:
    """Make preheating's share of the run a number of steps, as it was where it was interrupted.

    Args:
        job: what to train; its config may have a share.
        interrupted: folder of the checkpoints of the preheating to go on with, if any: its length
            stays, though fine-tuning may be longer now.

    Raises:
        ValueError: the run's length is not known beforehand.
    """
    warn_of_repeats(job.trainer, job.config)
    begun = None if interrupted is None else last_complete(interrupted)
    if job.config.is_share and begun is not None:
        steps = made_by(begun).get("preheat_steps")
        return replace(job, config=replace(job.config, preheat_steps=steps))
    lora = job.trainer.model.peft_config["default"]
    return replace(job, config=of_trainer(job.config, job.trainer, lora))


def check_preheating(job: Job) -> None:
    """Raise ``ValueError`` where the adapter and the settings do not allow preheating."""
    model = job.trainer.model
    check_preheatable(model, "default", lora_modules(model, "default"), job.config)


def preheat_into(
    job: Job, folder: Path, checkpoints: Checkpoints, facts: dict[str, Any], overwrite: bool = False
) -> None:
    """Preheat with ``checkpoints``, save the spectrum in ``folder``, and remove them.

    ``facts`` about the run go into the spectrum's provenance.
    """
    trainer, config = job.trainer, job.config
    rank = trainer.model.peft_config["default"].r
    rate = rates_of(trainer.args.learning_rate, config, rank).factors
    resumed = last_complete(checkpoints.folder, before=config.step_limit)
    trainer.accelerator.print(
        f"Preheating: rank {config.preheat_rank}, {config.preheat_steps} steps, learning rate "
        f"{rate:g}" + (f", from step {checkpoint_step(resumed)} on" if resumed else "")
    )
    began = time.perf_counter()
    _forget_peak()
    settings = dict(job.preheating)
    settings["trainer_cls"] = _reporting(settings["trainer_cls"], trainer)
    spectrum = preheat(trainer.model, config, checkpoints=checkpoints, **settings)
    cost = _cost(trainer, spectrum, time.perf_counter() - began)
    spectrum.provenance.update({"cost": cost, **facts})
    if trainer.is_world_process_zero():
        spectrum.save(folder, overwrite=overwrite)
        checkpoints.remove()
    trainer.accelerator.wait_for_everyone()


def finetune(trainer: Any, folder: Path) -> None:
    """Train, from the last whole checkpoint in ``folder`` if there is one."""
    trainer.add_callback(CompletionMarker())
    _forget_peak()
    checkpoint = last_complete(folder)
    limit = trainer.args.max_steps
    if checkpoint is not None and 0 < limit <= checkpoint_step(checkpoint):
        # HF Trainer would do one step more.
        trainer.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
        return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _publish(job: Job, output: Output, spectrum: Spectrum, data: str) -> None:
    trainer = job.trainer
    if not trainer.is_world_process_zero():
        trainer.save_model(str(output.folder))  # takes part in gathering; writes nothing
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    lora_config = model.peft_config["default"]
    facts = CardFacts(
        command=output.command,
        base=str(lora_config.base_model_name_or_path),
        adapter=trainer.args.hub_model_id or str(output.folder),
        lora_config=lora_config.to_dict(),
        provenance=spectrum.provenance,
        start={"direction": job.config.direction, "scale": job.config.scale},
        data=data,
    )

    def write(staging: Path) -> None:
        trainer.save_model(str(staging), _internal_call=True)
        trainer.state.save_to_json(str(staging / STATE))  # its losses, for `hrp report`
        (staging / "README.md").write_text(card(facts), encoding="utf-8")

    output.publish(write)
    output.update(peak_memory_gib=_peak_memory())


def _cost(trainer: Any, spectrum: Spectrum, seconds: float) -> dict[str, Any]:
    """Return what preheating took; the seconds are this process's, also if it was resumed."""
    args, steps = trainer.args, spectrum.provenance["steps"]
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    ranks = {name: module.rank for name, module in spectrum.items()}
    return {
        "seconds": round(seconds, 1),
        "examples": steps * batch,
        "temporary parameters": parameter_count(spectrum, ranks),
        **({} if (peak := _peak_memory()) is None else {"peak_memory_gib": peak}),
    }


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_memory() -> float | None:
    """Return this process's peak of GPU memory since `_forget_peak`, in GiB, if there is a GPU."""
    return (
        round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None
    )


def _reporting(trainer_cls: Any, real: Any) -> Any:
    """Subclass a trainer so that its loss goes to the real run's reporters, under its own name."""

    class Reporting(trainer_cls):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            _report(real, "on_train_begin", 0)  # TensorBoard's learns its folder there
            return super().train(*args, **kwargs)

        def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            super().log(logs, *args, **kwargs)
            if "loss" in logs:
                _report(real, "on_log", self.state.global_step, logs={LOSS_NAME: logs["loss"]})

    return Reporting


def _report(trainer: Any, event: str, step: int, **facts: Any) -> None:
    """Call the reporters (``report_to``) of ``trainer``, as at ``step`` of its training."""
    state = copy.copy(trainer.state)
    state.global_step = step
    state.is_world_process_zero = trainer.is_world_process_zero()
    for callback in trainer.callback_handler.callbacks:
        if type(callback).__module__.startswith(_REPORTERS):
            getattr(callback, event)(
                trainer.args, state, trainer.control, model=trainer.model, **facts
            )
