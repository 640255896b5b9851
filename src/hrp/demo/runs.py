"""Runs the demo: LoRA on word problems from PEFT's default start and from HRP's starts.

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

from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from hrp.config import HRPConfig
from hrp.demo.settings import ARMS, FILES, RECORD, Arm, DemoConfig, Run
from hrp.demo.summary import best_arm
from hrp.demo.task import (
    Task,
    answers,
    copy_base,
    fine_tune,
    make_adapter,
    make_task,
    trainer_settings,
)
from hrp.files import digests, write_folder
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating.pipeline import preheat
from hrp.spectra.spectrum import Spectrum
from hrp.versions import installed_versions


@dataclass(frozen=True)
class Finished:
    """Holds a run, the model that it trained, and the spectrum preheated on its seed."""

    run: Run
    arm: Arm
    model: PreTrainedModel | PeftModel
    spectrum: Spectrum


Finish = Callable[[Path, Finished], object]


def run_demo(
    config: DemoConfig,
    out: Path,
    overwrite: bool = False,
    say: Callable[[str], object] = print,
    tick: Callable[[int], object] = lambda steps: None,
    finish: Finish = lambda folder, best: None,
) -> list[Run]:
    """Train every arm on every seed; write the best HRP arm's run of the lowest test loss.

    ``out`` gets ``adapter`` (a plain PEFT adapter), ``spectrum`` (what it started from) and
    ``results.json`` (every run, and a few questions with answers before and after), all of it or
    nothing. ``tick`` is told of optimizer steps as they are done; ``finish`` may add files, named
    in `FILES`, to the folder before it is put in place. The caller has looked whether ``out`` may
    be written (`settings.check_earlier`).
    """
    task = make_task(config)
    finished: list[Finished] = []
    began = time.perf_counter()
    for latest in train_all(config, task, tick):
        finished.append(latest)
        run, total = latest.run, config.seeds * len(ARMS)
        left = (time.perf_counter() - began) * (total - len(finished)) / len(finished)
        say(
            f"[{len(finished)}/{total}] seed {run.seed}  {run.arm:<16}  "
            f"test loss {run.test_loss:.4f}  ({run.seconds:.0f} s; about {left:.0f} s left)"
        )
    runs = [f.run for f in finished]
    best = min((f for f in finished if f.run.arm == best_arm(runs)), key=lambda f: f.run.test_loss)

    def write(folder: Path) -> None:
        _write(folder, config, runs, best, task, finish)

    write_folder(out, write, overwrite, FILES)
    return runs


def train_all(
    config: DemoConfig, task: Task, tick: Callable[[int], object] = lambda steps: None
) -> Iterator[Finished]:
    """Yield each run as it ends; the HRP starts of one seed share one preheating."""
    for seed in range(config.seed, config.seed + config.seeds):
        began = time.perf_counter()
        spectrum = preheat_once(config, task, seed)
        tick(config.preheat_steps)
        seconds = time.perf_counter() - began
        spectrum.provenance["cost"] = {
            "seconds": round(seconds, 1),
            "examples": config.preheat_steps * config.batch_size,
        }
        for arm in ARMS:
            yield _train_one(config, task, seed, arm, (spectrum, seconds), tick)


def preheat_once(config: DemoConfig, task: Task, seed: int) -> Spectrum:
    """Preheat for one seed, by the Trainer and the arguments that fine-tuning uses."""
    hrp_config = HRPConfig(
        preheat_rank=config.preheat_rank,
        preheat_steps=config.preheat_steps,
        learning_rate=config.preheat_learning_rate,
        seed=seed,
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
    preheated: tuple[Spectrum, float],
    tick: Callable[[int], object],
) -> Finished:
    """Train one arm from a spectrum that took some seconds, where the arm wants one."""
    spectrum, preheat_seconds = preheated
    began = time.perf_counter()
    model = make_adapter(config, task, seed) if arm.adapter else copy_base(task, seed)
    spent, waited = 0, 0.0
    if arm.direction is not None:
        initialize_lora_hrp_weights(model, spectrum, arm.direction)
        spent, waited = config.preheat_steps, preheat_seconds
    with tempfile.TemporaryDirectory() as scratch:
        settings = trainer_settings(config, task, seed, arm.learning_rate, scratch)
        settings["args"].max_steps = config.steps - spent
        metrics, losses = fine_tune(model, task, settings, tick)
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
    return Finished(run, arm, model, spectrum)


def _write(
    folder: Path,
    config: DemoConfig,
    runs: list[Run],
    best: Finished,
    task: Task,
    finish: Finish,
) -> None:
    best.model.save_pretrained(folder / "adapter")
    best.spectrum.save(folder / "spectrum")
    after = answers(best.model, task)
    record = {
        "config": asdict(config),
        "preheat_steps": config.preheat_steps,
        "saved": {"arm": best.run.arm, "seed": best.run.seed},
        "samples": [
            {"question": row["question"], "before": was, "after": now, "reference": row["answer"]}
            for row, was, now in zip(task.shown, answers(task.base, task), after, strict=True)
        ],
        "runs": [asdict(run) for run in runs],
        "versions": installed_versions(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    finish(folder, best)
    record["files"] = {n: [value] for n, value in digests(folder).items() if n != RECORD}
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
