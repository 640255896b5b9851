"""Fine-tune a start through HF's Trainer, quietly, and count what it costs."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from hrp.adapters.casting import casts_left_to_autocast
from hrp_lab.bench.speed.options import Speed
from hrp_lab.bench.tasks import Example, Task

DEFAULTS: dict[str, Any] = {"lr_scheduler_type": "cosine", "weight_decay": 0.0, "logging_steps": 10}


@dataclass(frozen=True)
class Plan:
    """Tells a trainer its data, length, rate, seed, batch size and further arguments."""

    task: Task
    steps: int
    learning_rate: float
    seed: int
    batch_size: int
    training: Mapping[str, Any]
    speed: Speed = field(default_factory=Speed)


@dataclass(frozen=True)
class Trained:
    """Holds losses by step, optimizer steps, tokens without padding, and seconds of training."""

    losses: tuple[tuple[int, float], ...]
    steps: int
    tokens: int
    wall_s: float


class CountingCollator:
    """Collates, and counts the tokens of each batch, padding left out.

    Processes of a dataloader have copies of it, which write their counts into the file ``log``.
    """

    def __init__(self, collator: Callable[[list[Example]], Any], log: Path) -> None:
        self._collator = collator
        self._log = log
        self._calls = 0
        self._tokens: list[int] = []

    def __call__(self, rows: list[Example]) -> Any:
        """Collate ``rows``."""
        count = sum(len(row["input_ids"]) for row in rows)
        worker = get_worker_info()
        if worker is None:
            self._tokens.append(count)
        else:  # a short line is appended whole
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{worker.seed - worker.id} {self._calls} {worker.id} {count}\n")
        self._calls += 1
        return self._collator(rows)

    def collect(self) -> None:
        """Take in what processes have counted: they serve an epoch's batches in turn."""
        if not self._log.exists():
            return
        lines = [tuple(map(int, line.split())) for line in self._log.read_text().splitlines()]
        epochs = list(dict.fromkeys(line[0] for line in lines))
        lines.sort(key=lambda line: (epochs.index(line[0]), *line[1:3]))
        self._tokens += [line[3] for line in lines]

    def tokens(self, batches: int) -> int:
        """Count the tokens of the first ``batches`` batches; loaders fetch more than is used."""
        return sum(self._tokens[:batches])


class FiniteLoss(TrainerCallback):
    """Ends a run whose loss is NaN or infinite, instead of training on."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        """Raise ``FloatingPointError`` naming the step."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} at step {state.global_step}")


@contextmanager
def trainer_arguments(plan: Plan) -> Iterator[tuple[dict[str, Any], CountingCollator]]:
    """Give the keyword arguments of a ``Trainer``, and its collator, which counts tokens."""
    with tempfile.TemporaryDirectory(prefix="hrp-bench-") as scratch:
        collator = CountingCollator(plan.speed.collator(plan.task), Path(scratch) / "tokens")
        args = TrainingArguments(
            **DEFAULTS
            | {
                "output_dir": scratch,
                "max_steps": plan.steps,
                "per_device_train_batch_size": plan.batch_size,
                "learning_rate": plan.learning_rate,
                "seed": plan.seed,
                "bf16": torch.cuda.is_available(),
                "use_cpu": not torch.cuda.is_available(),
                "logging_nan_inf_filter": False,  # it would wait for the GPU at every step
                "remove_unused_columns": False,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "log_level": "error",
            }
            | dict(plan.training)
        )
        yield {"args": args, "train_dataset": plan.task.train, "data_collator": collator}, collator
        collator.collect()


def fine_tune(
    model: nn.Module,
    plan: Plan,
    optimizer: torch.optim.Optimizer | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Train ``model`` in place.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    with trainer_arguments(plan) as (kwargs, collator):
        trainer = plan.speed.trainer_cls(
            model=model,
            optimizers=(optimizer, None),
            callbacks=[FiniteLoss(), *callbacks],
            **kwargs,
        )
        trainer.remove_callback(PrinterCallback)
        began = time.perf_counter()
        try:
            with casts_left_to_autocast(model), plan.speed.applied(model, plan.task):
                trainer.train()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # else the time below would leave queued work out
        finally:
            trainer.accelerator.free_memory()
        state = trainer.state
        accumulated = kwargs["args"].gradient_accumulation_steps
    return Trained(
        tuple((row["step"], float(row["loss"])) for row in state.log_history if "loss" in row),
        state.global_step,
        collator.tokens(state.global_step * accumulated),
        time.perf_counter() - began,
    )
