"""Saves preheating and fine-tuning by HF Trainer's means; trusts whole checkpoints only.

HF Trainer fills a ``checkpoint-N`` folder file by file; a process killed meanwhile leaves a part.
A mark says from the beginning that the folder is HRP's, and later what files it has; a marker
written last says that it is whole. Nothing that is not listed there is removed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainingArguments

from hrp.adapters.moments import Moments
from hrp.files import clear_dead_staging, follow_umask, named, read_object, write_text
from hrp.preheating.binding import changed, settings_of_training
from hrp.preheating.stopping import SubspaceStopping
from hrp.spectra.artefact import FILES as SPECTRUM_FILES
from hrp.validation import check_integer

OWN_FOLDER = "hrp-preheating"
MARK = "hrp-checkpoint.json"
MARKER = "hrp-complete.json"
SUBSPACES = "subspaces"
MOMENTS = "moments.safetensors"
_KEPT = 2  # the newest may be at the last step, from which there is nothing to resume

# What HF's trainers write beside an adapter, tokenizers and processors included.
MODEL_FILES = frozenset(
    {
        *("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "README.md"),
        *("training_args.bin", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
        *("special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.txt"),
        *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
        *("chat_template.json", "preprocessor_config.json", "processor_config.json"),
    }
)
_STATE_FILES = frozenset(
    {
        *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth"),
        *("trainer_state.json", "latest", "zero_to_fp32.py", MOMENTS),
        *(f"{SUBSPACES}/{name}" for name in SPECTRUM_FILES),
    }
)
# Some files are one a process, and an adapter not called "default" has a folder.
_OTHERS = re.compile(
    r"rng_state_\d+\.pth|(global_step|optimizer_|pytorch_model_fsdp_)\d+/.+"
    r"|[^/]+/adapter_(config\.json|model\.(safetensors|bin))"
)


@dataclass(frozen=True)
class Checkpoints:
    """Says where preheating saves its state, and after how many steps each.

    Args:
        folder: in which preheating makes a folder ``hrp-preheating`` of its own, which this field
            names afterwards; it resumes from what is there, and touches nothing else.
        every: optimizer steps between two checkpoints.
    """

    folder: Path
    every: int = 10

    def __post_init__(self) -> None:
        """Check the fields; a string is as good a folder as a ``Path``."""
        check_integer("every", self.every, minimum=1)
        folder = Path(self.folder)
        own = folder if folder.name == OWN_FOLDER else folder / OWN_FOLDER
        object.__setattr__(self, "folder", own)

    def check(self) -> None:
        """Raise ``ValueError`` where the folder holds what preheating did not write."""
        if foreign := foreign_files(self.folder):
            raise ValueError(
                f"`checkpoints` in '{self.folder}' must be preheating's own, got {named(foreign)} "
                "that it did not write; move it away, or give another folder"
            )

    def remove(self) -> None:
        """Remove the checkpoints, and the folder unless something else is in it."""
        if is_marked(self.folder) or not _holds_something(self.folder):
            for checkpoint in checkpoint_folders(self.folder):
                remove_checkpoint(checkpoint)
            clear_dead_staging(self.folder / MARK)
            (self.folder / MARK).unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()


def checkpointing_arguments(args: TrainingArguments, checkpoints: Checkpoints) -> None:
    """Set, in preheating's own copy of ``args``, what makes HF Trainer save checkpoints.

    Marks the folder; raises ``ValueError`` where it holds what preheating did not write.
    """
    checkpoints.check()
    PartialState().wait_for_everyone()  # what one process writes now is not what the others check
    if PartialState().is_main_process:
        write_text(checkpoints.folder / MARK, "{}\n")
    args.output_dir = str(checkpoints.folder)
    args.save_strategy = "steps"
    args.save_steps = checkpoints.every
    args.save_total_limit = _KEPT
    args.save_only_model = False


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer steps done at a ``checkpoint-N``."""
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_folders(folder: Path) -> list[Path]:
    """List the ``checkpoint-N`` folders in ``folder``, whoever made them."""
    if not folder.is_dir():
        return []
    named_so = (path for path in folder.iterdir() if re.fullmatch(r"checkpoint-\d+", path.name))
    return sorted(path for path in named_so if path.is_dir())


def last_complete(folder: Path, before: int | None = None) -> Path | None:
    """Return the newest whole checkpoint in ``folder``, of fewer than ``before`` steps; or None."""
    whole = [path for path in checkpoint_folders(folder) if (path / MARKER).is_file()]
    eligible = [path for path in whole if before is None or checkpoint_step(path) < before]
    return max(eligible, key=checkpoint_step, default=None)


def is_marked(folder: Path) -> bool:
    """Return whether HRP made a checkpoint, or a folder of checkpoints."""
    return any((folder / name).is_file() for name in (MARK, MARKER))


def foreign_files(folder: Path) -> list[str]:
    """List what HRP did not write in its folder of checkpoints, by the path in it."""
    if not _holds_something(folder):
        return []
    if not is_marked(folder):
        return ["."]
    checkpoints = checkpoint_folders(folder)
    foreign = [path.name for path in folder.iterdir() if path not in checkpoints]
    foreign = sorted(set(foreign) - {MARK})
    return foreign + [name for path in checkpoints for name in foreign_in_checkpoint(path)]


def foreign_in_checkpoint(checkpoint: Path) -> list[str]:
    """List what HRP did not write in a ``checkpoint-N``, by the path from the folder around it."""
    if not is_marked(checkpoint):
        return [checkpoint.name] if _holds_something(checkpoint) else []
    foreign = sorted(set(_files(checkpoint)) - _own_files(checkpoint))
    return [f"{checkpoint.name}/{name}" for name in foreign]


def remove_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint's own files, its marks last, and the folders that are then empty."""
    own = _own_files(checkpoint) & set(_files(checkpoint)) if is_marked(checkpoint) else ()
    for name in sorted(own, key=lambda name: name in (MARK, MARKER)):
        (checkpoint / name).unlink()
    for path in sorted(checkpoint.rglob("*"), reverse=True):
        with suppress(OSError):
            path.rmdir()
    with suppress(OSError):
        checkpoint.rmdir()


def _holds_something(folder: Path) -> bool:
    """Return whether there is anything but what a kill left of marking the folder."""
    clear_dead_staging(folder / MARK)
    return os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir()))


def _files(checkpoint: Path) -> list[str]:
    clear_dead_staging(checkpoint / MARK, checkpoint / MARKER)
    files = (path for path in checkpoint.rglob("*") if not path.is_dir() or path.is_symlink())
    return [path.relative_to(checkpoint).as_posix() for path in files]


def _own_files(checkpoint: Path) -> set[str]:
    """Return what HRP wrote: what its mark lists, or in a part of a checkpoint HF's own names."""
    listed = _read(checkpoint / MARK).get("files") if (checkpoint / MARK).is_file() else None
    if not isinstance(listed, list):
        known = MODEL_FILES | _STATE_FILES
        listed = [name for name in _files(checkpoint) if name in known or _OTHERS.fullmatch(name)]
    return {*map(str, listed), MARK, MARKER}


def _read(mark: Path) -> dict[str, Any]:
    content = read_object(mark)
    if content is None:
        raise ValueError(f"'{mark}' is not what HRP wrote; move '{mark.parent}' away")
    return content


def made_by(checkpoint: Path) -> dict[str, Any]:
    """Return the settings of the run that made a whole checkpoint, see `CompletionMarker`."""
    run = _read(checkpoint / MARKER).get("run")
    return run if isinstance(run, dict) else {}


def check_same_run(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` unless a checkpoint was made by a run of these settings."""
    if differing := changed(made_by(checkpoint), run):
        raise ValueError(
            f"`checkpoints` in '{checkpoint.parent}' must be of the same run, got another: "
            f"{', '.join(differing)}; give another folder, or remove this one to begin anew"
        )


class CompletionMarker(TrainerCallback):
    """Marks each checkpoint before it is written, and as whole once all of its files are.

    A run that goes on from a checkpoint must have the settings, data and base weights of the run
    that made it (`hrp.preheating.binding`); ``train`` raises ``ValueError`` otherwise.

    Args:
        stopping: saved along, and restored; a checkpoint at the step where it stops preheating
            gets no marker, as there is nothing left to resume.
        run: further settings that a resumed run must share, see `check_same_run`.
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **facts: Any) -> None:
        """Collect what binds this run, compare the checkpoint, take up its stopping rule."""
        data = getattr(facts["train_dataloader"], "dataset", None)
        bound = settings_of_training(args, facts["model"], data, facts["optimizer"])
        (bound,) = broadcast_object_list([bound])  # each process has its own shard
        self._run = bound | self._run
        if not state.global_step:
            return
        checkpoint = self._folder(args, state)
        if (checkpoint / MARKER).is_file():
            check_same_run(checkpoint, self._run)
        if self._stopping is not None:
            self._stopping.load(checkpoint / SUBSPACES)
        if self._moments is not None:
            self._moments.load(checkpoint / MOMENTS, state.is_world_process_zero)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the folder of a checkpoint that is about to be written."""
        if control.should_save and state.is_world_process_zero:
            folder = self._folder(args, state)
            write_text(folder / MARK, "{}\n")
            (folder / MARKER).unlink(missing_ok=True)

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Write the marker, atomically."""
        folder = self._folder(args, state)
        if self._moments is not None:
            self._moments.save(folder / MOMENTS, state.is_world_process_zero)
        PartialState().wait_for_everyone()  # every process has written its part
        if not state.is_world_process_zero:
            return
        follow_umask(folder)
        settled = self._stopping is not None and self._stopping.settled
        if self._stopping is not None and not settled:
            self._stopping.save(folder / SUBSPACES)
        write_text(folder / MARK, json.dumps({"files": _files(folder)}) + "\n")
        if not settled:
            content = {"step": state.global_step, "run": self._run}
            write_text(folder / MARKER, json.dumps(content) + "\n")

    @staticmethod
    def _folder(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"
