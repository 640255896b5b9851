"""Does the whole job of `hrp sft` and `hrp finetune`: preheat, initialise, fine-tune, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import HfApi
from transformers import TrainerState
from trl import ScriptArguments

from hrp.adapters.checks import check_preheatable
from hrp.adapters.layers import lora_modules
from hrp.cli.arguments import DataArguments, HRPArguments, LoraModelConfig, OutputArguments
from hrp.cli.failures import UsageError
from hrp.cli.modelcard import card
from hrp.cli.outputs import Output, locked
from hrp.cli.report import PAGE, write_own_page
from hrp.cli.trainers import built, losses_reported, warn_of_repeats
from hrp.config import HRPConfig
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating.binding import BASE, DATA, files_digest, settings_of
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

# Checkpoints, locks and work in progress stay at home, as with HF Trainer.
_NOT_PUSHED = ["_*", "checkpoint-*/**", ".hrp-*/**"]
STATE = "trainer_state.json"


@dataclass
class Request:
    """Holds all that a command was given, by the class that TRL, HF or we define for it."""

    hrp: HRPArguments
    data: DataArguments
    output: OutputArguments
    script: ScriptArguments
    training: Any
    model: LoraModelConfig

    @property
    def data_name(self) -> str | None:
        """Return the path, or the name on the hub, of the data; None for a mixture."""
        return self.data.dataset_path or self.script.dataset_name

    def settings(self) -> dict[str, Any]:
        """Return what a resumed run must have in common, the content of local files included.

        Raises ``UsageError`` where the run would write into what it reads.
        """
        groups = [getattr(self, field.name) for field in fields(self)]
        settings = settings_of(*groups)
        output = Path(self.training.output_dir)
        for key, name in ((DATA, self.data_name), (BASE, self.model.model_name_or_path)):
            given = Path(name or "")
            if not name or not given.exists():
                continue
            if given.is_dir() and output.resolve().is_relative_to(given.resolve()):
                raise UsageError(
                    f"`--output_dir` must be outside '{given}', whose files a resumed run "
                    f"compares, got '{output}'; choose another"
                )
            settings[key] = files_digest(given, whole=key == DATA)
        return settings

    def output_for(self, command: str, folder: Path) -> Output:
        """Describe the run's output ``folder``."""
        given = Path(self.hrp.spectrum) if self.hrp.spectrum else None
        training = self.training
        length = {"max_steps": training.max_steps, "num_train_epochs": training.num_train_epochs}
        pushes = bool(training.push_to_hub)
        return Output(folder, command, self.settings(), given, length, pushes)


def carry_out(command: str, request: Request, build: Callable[[Any], Any]) -> int:
    """Do what ``request`` asks for, with the trainer that ``build`` makes; returns 0.

    What an interrupted run left in the output is gone on with.

    Raises:
        ValueError: what `hrp.preheat` and `hrp.initialize_lora_hrp_weights` refuse.
        PreheatingError: preheating failed.
        OSError: the output cannot be written; what is there is not half a result.
    """
    config = request.hrp.hrp_config(request.training.seed)
    training, flags = request.training, request.output
    output = request.output_for(command, Path(training.output_dir))
    with locked(output.lock, command, output.folder):
        if not output.check(flags.overwrite, flags.resume):
            if not (output.folder / PAGE).exists() and PartialState().is_main_process:
                write_own_page(output.folder)  # it was killed right before
            if training.push_to_hub and not (output.read_record() or {}).get("pushed"):
                push(output, training)
            return 0
        spectrum = None if output.given is None else Spectrum.load(output.given)
        trainer = built(request, build)
        # What can be refused is refused before `begin` removes what an earlier run has left.
        if spectrum is None:
            config = with_steps(trainer, config, output.preheating if flags.resume else None)
            modules = lora_modules(trainer.model, "default")
            check_preheatable(trainer.model, "default", modules, config)
        else:
            start(trainer, config, spectrum, output.given)
        if trainer.is_world_process_zero():
            output.begin(flags.overwrite)
        trainer.accelerator.wait_for_everyone()
        if spectrum is None:
            checkpoints = Checkpoints(output.folder, request.hrp.preheat_save_steps)
            if not output.spectrum.exists():
                facts = {"run": (output.read_record() or {}).get("run")}  # whose spectrum it is
                preheat_into(trainer, config, output.spectrum, checkpoints, facts)
            elif trainer.is_world_process_zero():
                checkpoints.remove()  # left by a run that was killed right after saving
            spectrum = Spectrum.load(output.spectrum)
            start(trainer, config, spectrum, output.spectrum)
        finetune(trainer, output.folder)
        data = request.data_name or "a mixture of data sets"
        publish(trainer, config, output, spectrum, data)
        trainer.accelerator.print(f"Adapter saved to {output.folder}")
        if trainer.is_world_process_zero() and (page := write_own_page(output.folder)):
            print(f"What the run did: {page}")
        if training.push_to_hub:
            push(output, training)
        if hasattr(trainer, "end"):  # since transformers 5.18: closes the reporters
            trainer.end()
    return 0


def start(trainer: Any, config: HRPConfig, spectrum: Spectrum, folder: Path | None) -> None:
    """Start the adapter from ``spectrum``, read in ``folder``; ``ValueError`` if they don't fit."""
    initialize_lora_hrp_weights(
        trainer.model,
        spectrum,
        config.direction,
        config.scale,
        truncation=config.truncation,
        keep=config.keep,
    )
    trainer.accelerator.print(f"LoRA starts from {folder}, direction {config.direction}")


def with_steps(trainer: Any, config: HRPConfig, interrupted: Path | None) -> HRPConfig:
    """Make preheating's share of the run a number of steps, as it was where it was interrupted.

    Args:
        trainer: of the real run, its model a ``PeftModel``.
        config: it may have a share.
        interrupted: folder of the checkpoints of the preheating to go on with, if any: its length
            stays, though fine-tuning may be longer now.

    Raises:
        ValueError: the run's length is not known beforehand.
    """
    warn_of_repeats(trainer, config)
    begun = None if interrupted is None else last_complete(interrupted)
    if config.is_share and begun is not None:
        return replace(config, preheat_steps=made_by(begun).get("preheat_steps"))
    return of_trainer(config, trainer, trainer.model.peft_config["default"])


def preheat_into(
    trainer: Any,
    config: HRPConfig,
    folder: Path,
    checkpoints: Checkpoints,
    facts: dict[str, Any],
    overwrite: bool = False,
) -> None:
    """Preheat with ``checkpoints``, save the spectrum in ``folder``, and remove them.

    ``facts`` about the run go into the spectrum's provenance.
    """
    rank = trainer.model.peft_config["default"].r
    rate = rates_of(trainer.args.learning_rate, config, rank).factors
    resumed = last_complete(checkpoints.folder, before=config.step_limit)
    trainer.accelerator.print(
        f"Preheating: rank {config.preheat_rank}, {config.preheat_steps} steps, learning rate "
        f"{rate:g}" + (f", from step {checkpoint_step(resumed)} on" if resumed else "")
    )
    began = time.perf_counter()
    _forget_peak()
    with losses_reported(trainer):
        spectrum = preheat(trainer, config, checkpoints=checkpoints)
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


def publish(trainer: Any, config: HRPConfig, output: Output, spectrum: Spectrum, data: str) -> None:
    """Put the adapter, its card and the losses into ``output``, and record that it is finished."""
    if not trainer.is_world_process_zero():
        trainer.save_model(str(output.folder))  # takes part in gathering; writes nothing
        return
    model = trainer.accelerator.unwrap_model(trainer.model)

    def write(staging: Path) -> None:
        trainer.save_model(str(staging), _internal_call=True)
        if model.peft_config["default"].task_type == "SEQ_CLS":  # what the classes are called
            model.get_base_model().config.save_pretrained(staging)
        trainer.state.save_to_json(str(staging / STATE))  # its losses, for `hrp report`
        readme = card(
            command=output.command,
            adapter=trainer.args.hub_model_id or str(output.folder),
            lora_config=model.peft_config["default"].to_dict(),
            provenance=spectrum.provenance,
            start={"direction": config.direction, "scale": config.scale},
            data=data,
        )
        (staging / "README.md").write_text(readme, encoding="utf-8")

    output.publish(write)
    output.update(peak_memory_gib=_peak_memory())


def push(output: Output, training: Any) -> None:
    """Upload the output as HF Trainer would, and record that it is done.

    Raises:
        UsageError: the hub cannot be reached, or refuses; the output is finished all the same.
    """
    if not PartialState().is_main_process:
        return
    name = training.hub_model_id or output.folder.resolve().name
    try:
        api = HfApi(token=training.hub_token)
        repo = api.create_repo(name, private=training.hub_private_repo, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo,
            folder_path=output.folder,
            revision=training.hub_revision,
            commit_message="End of training",
            ignore_patterns=_NOT_PUSHED,
        )
    except Exception as error:  # the errors of its network library have no base that we know
        raise UsageError(
            f"'{output.folder}' is finished, but could not be pushed to '{name}' ({error}); run "
            "the same command again to push it"
        ) from error
    output.update(pushed=True)


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
