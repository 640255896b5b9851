"""Executes a run: its arm's start, fine-tuning, evaluation, and the record of its outcome."""

from __future__ import annotations

import dataclasses
import math
import time
import traceback
from datetime import UTC, datetime

import torch
from accelerate.utils.memory import clear_device_cache
from torch import nn

from hrp.versions import installed_versions
from hrp_lab.bench import costs
from hrp_lab.bench.arms import ARMS
from hrp_lab.bench.context import Bench, NotApplicable, Places, Setup, Start, peak_memory
from hrp_lab.bench.costs import Costs, equivalent_steps
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.training import Trained

AMORTISED_OVER = 5
"""Fine-tunings that share one start in the budget "amortised": a usual sweep of learning rates."""


def execute(bench: Bench, spec: RunSpec) -> Record:
    """Run ``spec``; a failure becomes a record too.

    A CUDA error, which leaves the GPU context of this process unusable, is raised: the process must
    be replaced and the run done again.
    """
    started = now()
    try:
        record = _done(bench, spec)
    except NotApplicable as reason:
        record = Record(spec, "not-applicable", str(reason))
    except Exception as error:
        if "CUDA error" in str(error) and not isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        record = Record(spec, "failed", _described(error))
    finally:
        clear_device_cache(garbage_collection=True)  # so that many processes fit on one device
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return stamped(record, bench.places, started, device)


def now() -> str:
    """Return the UTC time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def stamped(record: Record, places: Places, started: str, device: str) -> Record:
    """Add where, when and from which sources a record comes."""
    commit, dirty = places.git
    return dataclasses.replace(
        record,
        git_commit=commit,
        git_dirty=dirty,
        versions=installed_versions(),
        device=device,
        command=places.command,
        started=started,
        ended=now(),
    )


def _done(bench: Bench, spec: RunSpec) -> Record:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    setup = Setup(bench, spec)
    began = time.perf_counter()
    start = ARMS[spec.arm].start(setup)
    start_s = time.perf_counter() - began - setup.sharing_s
    _check_precision(spec.arm, start.model)
    used = _charged(setup, start.costs)
    trained = setup.train(start, setup.steps_after(used.charged_steps), spec.learning_rate)
    used = dataclasses.replace(
        used,
        finetune_steps=trained.steps,
        tokens=used.tokens + trained.tokens,
        flops=used.flops + _finetune_flops(setup, start, trained),
        wall_s=start_s + trained.wall_s + (used.wall_s if setup.sharing_s else 0.0),
        peak_memory_bytes=max(used.peak_memory_bytes, peak_memory()),
    )
    judged = start.model if start.finish is None else start.finish(start.model)
    metrics = bench.task(spec).evaluate(judged)
    if spec.config["metric"] not in metrics:
        raise ValueError(
            f"`metric` must be one of the task's {sorted(metrics)}, got {spec.config['metric']!r}"
        )
    lost = [name for name, value in metrics.items() if not math.isfinite(value)]
    if lost:
        raise FloatingPointError(f"the metrics {lost} are not finite after fine-tuning")
    return Record(
        spec,
        "ok",
        metrics=metrics,
        losses=trained.losses,
        preheat_losses=start.preheat_losses,
        costs=used,
    )


def _charged(setup: Setup, used: Costs) -> Costs:
    """Return the costs of a start as the run's budget charges it.

    "equal_compute" charges every start the fine-tuning steps that cost as many FLOPs; the other
    budgets charge preheating its own steps, though one at a high rank costs more than one of
    fine-tuning. "amortised" shares the start among `AMORTISED_OVER` fine-tunings.
    """
    budget = setup.spec.config["budget"]
    if budget == "equal_compute":
        steps = equivalent_steps(used.flops, setup.step_flops)
        return dataclasses.replace(used, charged_steps=steps)
    if budget == "amortised":
        return dataclasses.replace(
            used,
            charged_steps=used.charged_steps / AMORTISED_OVER,
            tokens=round(used.tokens / AMORTISED_OVER),
            flops=used.flops / AMORTISED_OVER,
            wall_s=used.wall_s / AMORTISED_OVER,
        )
    return used


def _check_precision(arm: str, model: nn.Module) -> None:
    """Raise ``ValueError`` where the arm trains in less than float32: no fair comparison."""
    coarse = {str(p.dtype) for p in model.parameters() if p.requires_grad} - {"torch.float32"}
    if coarse:
        raise ValueError(
            f"arm {arm!r} would train parameters in {', '.join(sorted(coarse))}, all others train "
            "float32; cast its start"
        )


def _finetune_flops(setup: Setup, start: Start, trained: Trained) -> float:
    """Count FLOPs by `hrp_lab.bench.costs`, without DoRA's norms and AdaLoRA's penalty."""
    if start.full:
        return costs.full_finetuning_flops(setup.size, trained.tokens)
    adapter = [p for name, p in start.model.named_parameters() if ".lora_" in name]
    held = sum(p.numel() for p in adapter)
    updated = sum(p.numel() for p in adapter if p.requires_grad)
    return costs.lora_flops(setup.size, trained.tokens, held, updated)


def _described(error: BaseException) -> str:
    """Return an error's type, message and innermost place in the source, on one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    return " ".join(f"{type(error).__name__}: {error} ({place})".split())[:1000]
