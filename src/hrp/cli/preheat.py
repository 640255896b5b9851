"""``hrp preheat`` writes a spectrum folder, for `hrp init` or ``hrp sft --spectrum``."""

from __future__ import annotations

import os
from pathlib import Path

from hrp.cli.failures import UsageError, reported
from hrp.cli.locks import lock_beside
from hrp.cli.outputs import Output, locked, say, spectrum_provenance
from hrp.cli.running import preheat_into, with_steps
from hrp.cli.sft import build_trainer, parse_sft
from hrp.cli.trainers import built
from hrp.files import check_replaceable, settle
from hrp.preheating.binding import changed
from hrp.preheating.checkpoints import Checkpoints
from hrp.spectra.artefact import FILES

DESCRIPTION = """\
Preheat only: train a LoRA of high rank for a few steps and write its spectrum to --output_dir,
which serves every lower rank. Takes the flags of `hrp sft`; a share as --preheat_steps, such as the
default, is one of the fine-tuning that the other flags describe.
"""
EXAMPLE = """\
  hrp preheat --model_name_or_path Qwen/Qwen3-0.6B --dataset_name trl-lib/Capybara \\
      --preheat_rank 128 --preheat_steps 200 --preheat_learning_rate 5e-5 --output_dir runs/spectrum
"""


def main(argv: list[str]) -> int:
    """Run ``hrp preheat``; returns the exit status."""
    return reported("preheat", lambda: _run(argv))


def _run(argv: list[str]) -> int:
    request = parse_sft("preheat", DESCRIPTION, EXAMPLE, argv)
    if request.hrp.spectrum:
        raise UsageError("`--spectrum` is for `hrp sft`; `hrp preheat` makes one")
    config = request.hrp.hrp_config(request.training.seed)
    folder = Path(request.training.output_dir)
    work = request.output_for("preheat", folder.parent / f".{folder.name}.preheating")
    with locked(lock_beside(folder), "preheat", folder):
        if _finished(folder, work, request.output.overwrite):
            return 0
        work.check(request.output.overwrite, request.output.resume)
        request.training.output_dir = str(work.folder)
        trainer = built(request, build_trainer)
        config = with_steps(trainer, config, work.preheating if request.output.resume else None)
        if trainer.is_world_process_zero():
            work.begin(request.output.overwrite)
        trainer.accelerator.wait_for_everyone()
        checkpoints = Checkpoints(work.folder, request.hrp.preheat_save_steps)
        facts = {"settings": work.settings | work.length}
        preheat_into(trainer, config, folder, checkpoints, facts, request.output.overwrite)
        if trainer.is_world_process_zero():
            work.discard()
        trainer.accelerator.print(f"Spectrum saved to {folder}; `hrp inspect {folder}` shows it")
    return 0


def _finished(folder: Path, work: Output, overwrite: bool) -> bool:
    """Return whether the spectrum is there, made with the same settings.

    Raises:
        UsageError: something else is there, or a spectrum of other settings.
        FileExistsError: something besides the spectrum would be replaced, too.
    """
    settle(folder, clear=True)
    if not os.path.lexists(folder):
        return False
    provenance = spectrum_provenance(folder)
    if not provenance:
        raise UsageError(f"'{folder}' exists and is no spectrum; choose another --output_dir")
    if overwrite:
        check_replaceable(folder, FILES)
        return False
    made = provenance.get("settings") or {}
    if differing := changed(made, work.settings | work.length):
        raise UsageError(
            f"the spectrum in '{folder}' was made with other settings: {', '.join(differing)}; "
            "give them as they were, choose another --output_dir, or pass --overwrite"
        )
    work.discard()  # left by a run that was killed right after saving
    say(f"'{folder}' is finished: nothing to do; --overwrite preheats again")
    return True
