"""Checkpoints of preheating and fine-tuning, by HF Trainer's own means, trusted only when whole.

HF Trainer fills a ``checkpoint-N`` folder file by file; a process killed meanwhile leaves a part.
A marker written last tells the whole ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from transformers import TrainerCallback, TrainingArguments

from hrp.adapters.moments import Moments
from hrp.files import write_text
from hrp.preheating.stopping import SubspaceStopping
from hrp.validation import check_integer

MARKER = "hrp-complete.json"
SUBSPACES = "subspaces"
MOMENTS = "moments.safetensors"
_KEPT = 2  # the newest may be at the last step, from which there is nothing to resume


@dataclass(frozen=True)
class Checkpoints:
    """Where preheating saves its state, and after how many steps each.

    Args:
        folder: for HF Trainer's ``checkpoint-N`` folders; preheating resumes from what is there.
        every: optimizer steps between two checkpoints.
    """

    folder: Path
    every: int = 10

    def __post_init__(self) -> None:
        """Check the fields; a string is as good a folder as a ``Path``."""
        check_integer("every", self.every, minimum=1)
        object.__setattr__(self, "folder", Path(self.folder))


def checkpointing_arguments(args: TrainingArguments, checkpoints: Checkpoints) -> None:
    """Set, in preheating's own copy of ``args``, what makes HF Trainer save checkpoints."""
    args.output_dir = str(checkpoints.folder)
    args.save_strategy = "steps"
    args.save_steps = checkpoints.every
    args.save_total_limit = _KEPT
    args.save_only_model = False


def checkpoint_step(checkpoint: Path) -> int:
    """Optimizer steps done at a ``checkpoint-N``."""
    return int(checkpoint.name.rpartition("-")[2])


def last_complete(folder: Path, before: int | None = None) -> Path | None:
    """Return the newest whole checkpoint in ``folder``, of fewer than ``before`` steps; or None."""
    whole = [marker.parent for marker in folder.glob(f"checkpoint-*/{MARKER}")]
    eligible = [path for path in whole if before is None or checkpoint_step(path) < before]
    return max(eligible, key=checkpoint_step, default=None)


def made_by(checkpoint: Path) -> dict[str, Any]:
    """Settings of the run that made a whole checkpoint, see `CompletionMarker`."""
    found: dict[str, Any] = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
    return dict(found.get("run", {}))


def check_same_run(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless a checkpoint was made by a run of these settings."""
    before = made_by(checkpoint)
    other = [f"{k} {before.get(k)!r} there, {v!r} now" for k, v in run.items()
             if before.get(k) != v]  # fmt: skip
    if other:
        raise ValueError(
            f"`checkpoints` in '{checkpoint.parent}' must be of the same preheating, got another: "
            f"{'; '.join(other)}; give another folder, or remove this one to begin anew"
        )


class CompletionMarker(TrainerCallback):
    """Marks each checkpoint as whole, once all of its files are written.

    Args:
        stopping: saved along, and restored; a checkpoint at the step where it stops preheating
            gets no marker, as there is nothing left to resume.
        run: settings that a resumed run must share, see `check_same_run`.
        moments: saved along, and restored.
    """

    def __init__(
        self,
        stopping: SubspaceStopping | None = None,
        run: Mapping[str, Any] | None = None,
        moments: Moments | None = None,
    ) -> None:
        self._stopping = stopping
        self._moments = moments
        self._run = dict(run or {})

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take up the stopping rule and the moments where the checkpoint left them."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._stopping is not None and state.global_step:
            self._stopping.load(folder / SUBSPACES)
        if self._moments is not None and state.global_step:
            self._moments.load(folder / MOMENTS, state.is_world_process_zero)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the marker, atomically."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._moments is not None:
            self._moments.save(folder / MOMENTS, state.is_world_process_zero)
        PartialState().wait_for_everyone()  # every process has written its part
        if not state.is_world_process_zero or (self._stopping and self._stopping.settled):
            return
        if self._stopping is not None:
            self._stopping.save(folder / SUBSPACES)
        content = {"step": state.global_step, "run": self._run}
        write_text(folder / MARKER, json.dumps(content) + "\n")
