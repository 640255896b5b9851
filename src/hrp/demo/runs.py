"""The demo: LoRA fine-tuning on word problems from PEFT's default start and from HRP's starts.

Every arm gets the same data, in the same order for the same seed, and the same total of
optimizer steps: what HRP spends on preheating is taken out of its fine-tuning.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from hrp.config import HRPConfig
from hrp.demo.base_model import load_base
from hrp.demo.data import answer_collator
from hrp.demo.settings import ARMS, RECORD, Arm, DemoConfig, Run, check_earlier
from hrp.demo.task import Task, copy_base, fine_tune, make_adapter, make_task, trainer_settings
from hrp.files import digests, write_folder
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating.pipeline import preheat
from hrp.spectra.spectrum import Spectrum
from hrp.versions import installed_versions


@dataclass(frozen=True)
class Finished:
    """A run, the model that it trained, and the spectrum preheated on the run's seed."""

    run: Run
    model: PreTrainedModel | PeftModel
    spectrum: Spectrum


def run_demo(
    config: DemoConfig, out: Path, overwrite: bool = False, say: Callable[[str], None] = print
) -> list[Run]:
    """Train every arm on every seed; write the HRP run of the lowest test loss into ``out``.

    ``out`` gets ``adapter`` (a plain PEFT adapter), ``spectrum`` (what it started from) and
    ``results.json`` (every run), all of it or nothing.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is false, or it holds anything besides an
            earlier demo; raised before any training.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"output folder '{out}' exists")
    check_earlier(out)
    task = make_task(config)
    finished: list[Finished] = []
    for latest in train_all(config, task):
        finished.append(latest)
        run, total = latest.run, config.seeds * len(ARMS)
        say(
            f"[{len(finished)}/{total}] seed {run.seed}  {run.arm:<16}  "
            f"test loss {run.test_loss:.4f}  ({run.seconds:.0f} s)"
        )
    best = min((f for f in finished if f.run.preheat_steps), key=lambda f: f.run.test_loss)
    runs = [f.run for f in finished]
    write_folder(out, lambda folder: _write(folder, config, runs, best, task), overwrite)
    return runs


def train_all(config: DemoConfig, task: Task) -> Iterator[Finished]:
    """Yield each run as it ends; the HRP starts of one seed share one preheating."""
    for seed in range(config.seed, config.seed + config.seeds):
        began = time.perf_counter()
        spectrum = preheat_once(config, task, seed)
        preheat_seconds = time.perf_counter() - began
        for arm in ARMS:
            yield _train_one(config, task, seed, arm, spectrum, preheat_seconds)


def preheat_once(config: DemoConfig, task: Task, seed: int) -> Spectrum:
    """Preheat for one seed, by the Trainer and the arguments that fine-tuning uses."""
    hrp_config = HRPConfig(
        preheat_rank=config.preheat_rank, preheat_steps=config.preheat_steps, seed=seed
    )
    with tempfile.TemporaryDirectory() as scratch:
        settings = trainer_settings(config, task, seed, config.preheat_learning_rate, scratch)
        return preheat(
            make_adapter(config, task, seed), hrp_config, trainer_cls=Trainer, **settings
        )


def _train_one(
    config: DemoConfig,
    task: Task,
    seed: int,
    arm: Arm,
    spectrum: Spectrum,
    preheat_seconds: float,
) -> Finished:
    began = time.perf_counter()
    model = make_adapter(config, task, seed) if arm.adapter else copy_base(task, seed)
    spent, waited = 0, 0.0
    if arm.direction is not None:
        initialize_lora_hrp_weights(model, spectrum, arm.direction)
        spent, waited = config.preheat_steps, preheat_seconds
    with tempfile.TemporaryDirectory() as scratch:
        settings = trainer_settings(config, task, seed, arm.learning_rate, scratch)
        settings["args"].max_steps = config.steps - spent
        metrics, losses = fine_tune(model, task, settings)
    run = Run(
        arm=arm.name,
        seed=seed,
        preheat_steps=spent,
        steps=config.steps - spent,
        learning_rate=arm.learning_rate,
        test_loss=metrics["eval_loss"],
        exact=metrics["eval_exact"],
        seconds=time.perf_counter() - began + waited,
        losses=losses,
    )
    return Finished(run, model, spectrum)


def _write(folder: Path, config: DemoConfig, runs: list[Run], best: Finished, task: Task) -> None:
    best.model.save_pretrained(folder / "adapter")
    best.spectrum.save(folder / "spectrum")
    record = {
        "config": asdict(config),
        "preheat_steps": config.preheat_steps,
        "saved": {"arm": best.run.arm, "seed": best.run.seed},
        "runs": [asdict(run) for run in runs],
        "versions": installed_versions(),
        "files": {name: [value] for name, value in digests(folder).items()},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    _check_reload(folder / "adapter", best.model, task)


def _check_reload(adapter: Path, trained: PeftModel, task: Task) -> None:
    """Raise ``RuntimeError`` unless plain PEFT, on a fresh base, gives the trained logits."""
    reloaded = PeftModel.from_pretrained(load_base()[0], adapter)
    batch = answer_collator(task.tokenizer)([dict(row) for row in task.test[:4]])
    with torch.no_grad():
        expected = trained.eval()(**batch).logits
        found = reloaded.eval()(**batch).logits
    if not torch.allclose(found, expected, atol=1e-5):
        gap = float((found - expected).abs().max())
        raise RuntimeError(f"the saved adapter gives other logits when loaded, by up to {gap:.2g}")
