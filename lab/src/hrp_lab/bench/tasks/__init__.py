"""Each task is a file whose `load` makes data, model, collator and metrics from a `TaskRequest`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrp.validation import check_choice

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

Example = dict[str, Any]

TASKS: dict[str, tuple[str, str]] = {
    "gsm8k": ("gsm8k", "eval_loss"),
    "metamath-gsm8k": ("gsm8k", "exact_match"),
    "wordproblems": ("wordproblems", "eval_loss"),
    "function-names": ("function_names", "eval_loss"),
    "glue-cola": ("glue", "matthews_correlation"),
    "glue-sst2": ("glue", "accuracy"),
    "glue-mrpc": ("glue", "f1"),
    "glue-qnli": ("glue", "accuracy"),
    "glue-mnli": ("glue", "accuracy"),
}
"""This maps a task's name to its module in this package and the metric to judge by."""


@dataclass(frozen=True)
class TaskRequest:
    """Says which of `TASKS` to load, with which model, data and options.

    Model and dataset are local paths or hub names; without a dataset it is the task's own.
    """

    name: str
    model: str
    dataset: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def settings(self, **defaults: Any) -> dict[str, Any]:
        """Override ``defaults`` by ``options``; raise ``ValueError`` on any other option."""
        if unknown := sorted(set(self.options) - set(defaults)):
            raise ValueError(
                f"`task` {self.name!r} has no option {unknown}; its options are {sorted(defaults)}"
            )
        return defaults | dict(self.options)

    @property
    def folder(self) -> Path | None:
        """Return ``dataset`` as a folder, or None where it is a hub name."""
        folder = Path(self.dataset) if self.dataset else None
        return folder if folder and folder.is_dir() else None


@dataclass(frozen=True)
class Task:
    """Holds a task that is ready to train on and to be judged by.

    Args:
        task_type: PEFT's ``TaskType``: "CAUSAL_LM", "SEQ_2_SEQ_LM" or "SEQ_CLS".
        train: tokenised examples, dicts of lists.
        collator: makes a padded batch of examples.
        load_model: returns a fresh base model of the given dtype on the CPU.
        evaluate: returns the metrics of a model, by name; among them the one that `TASKS` names.
        seeded_head: whether ``load_model`` draws a new head from the global generator.
    """

    task_type: str
    train: Sequence[Example]
    collator: Callable[[list[Example]], Any]
    load_model: Callable[[torch.dtype], PreTrainedModel]
    evaluate: Callable[[nn.Module], dict[str, float]]
    seeded_head: bool = False


def load_task(request: TaskRequest) -> Task:
    """Load a task by name; raise ``ValueError`` on an unknown name or option."""
    check_choice("tasks", request.name, tuple(TASKS))
    module = importlib.import_module(f"hrp_lab.bench.tasks.{TASKS[request.name][0]}")
    task: Task = module.load(request)
    return task
