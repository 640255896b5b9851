"""Output folders that tell a finished run from an interrupted one, and are never half a result."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hrp.checkpoints import last_complete
from hrp.cli.failures import UsageError
from hrp.versions import installed_versions

RECORD = "hrp.json"
SPECTRUM = "spectrum"
PREHEATING = "preheating"
_STAGING = ".hrp-staging"
# Moved last: without it PEFT does not take a folder for an adapter.
_LAST = "adapter_config.json"
_RESULTS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")

State = Literal["absent", "finished", "interrupted", "foreign"]


@dataclass(frozen=True)
class Output:
    """One run's output folder.

    Args:
        folder: of the adapter; the spectrum and the work in progress are in sub-folders.
        command: that writes it, for messages.
        settings: what a resumed run must have in common with the interrupted one.
    """

    folder: Path
    command: str
    settings: dict[str, Any]

    @property
    def spectrum(self) -> Path:
        """Folder of the spectrum, there once preheating is done."""
        return self.folder / SPECTRUM

    @property
    def preheating(self) -> Path:
        """Folder of preheating's checkpoints, gone once it is done."""
        return self.folder / PREHEATING

    def state(self) -> State:
        """What an earlier run left here."""
        record = _read(self.folder / RECORD)
        if record is not None:
            if record.get("finished"):
                return "finished"
            # A run that failed before its first checkpoint left nothing to go on from.
            begun = self.spectrum.exists() or any(map(last_complete, self._work()))
            return "interrupted" if begun else "absent"
        ours = any((self.folder / name).exists() for name in _RESULTS)
        return "foreign" if ours or list(self.folder.glob("checkpoint-*")) else "absent"

    def _work(self) -> tuple[Path, Path]:
        """Folders that may hold checkpoints."""
        return self.preheating, self.folder

    def check(self, overwrite: bool, resume: bool) -> bool:
        """Whether this run should go ahead; False if it is finished. Writes nothing.

        Raises:
            UsageError: the folder cannot be written; there is another run's work and neither flag
                is given; ``resume`` of a run with other settings.
        """
        check_place(self.folder)
        state = self.state()
        if overwrite or state == "absent":
            return True
        if state == "finished":
            print(f"'{self.folder}' is finished: nothing to do; --overwrite runs it again")
            return False
        if state == "foreign":
            raise UsageError(
                f"'{self.folder}' holds the work of another program; choose another "
                "--output_dir, or pass --overwrite"
            )
        if not resume:
            raise UsageError(
                f"'{self.folder}' holds an interrupted run; pass --resume to go on, or "
                "--overwrite to begin again"
            )
        self._check_same()
        return True

    def begin(self, overwrite: bool) -> None:
        """Make the folder ready, after `check`; raises ``UsageError`` where it is not writable."""
        try:
            if overwrite or self.state() == "absent":
                self._clear()
            self.record(finished=False)
        except OSError as error:
            raise UsageError(
                f"`--output_dir` '{self.folder}' cannot be written ({error.strerror}); choose "
                "another"
            ) from error

    def record(self, finished: bool, **facts: Any) -> None:
        """Write the record, atomically; makes the folder if need be."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {
            "command": self.command,
            "finished": finished,
            "settings": self.settings,
            "versions": installed_versions(),
            **facts,
        }
        staging = self.folder / f".{RECORD}"
        staging.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
        os.replace(staging, self.folder / RECORD)

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a staging folder, then move its files here, what makes it load last.

        Nothing is moved if ``write`` fails.
        """
        staging = self.folder / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            write(staging)
            for path in sorted(staging.iterdir(), key=lambda path: path.name == _LAST):
                os.replace(path, self.folder / path.name)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _check_same(self) -> None:
        before = (_read(self.folder / RECORD) or {}).get("settings", {})
        now = json.loads(json.dumps(self.settings, default=str))
        names = sorted(set(before) | set(now))
        changed = [
            f"{name} (was {before.get(name)!r}, now {now.get(name)!r})"
            for name in names
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise UsageError(
                f"the run in '{self.folder}' had other settings: {', '.join(changed)}; give "
                "them as they were, or pass --overwrite to begin again"
            )

    def _clear(self) -> None:
        """Remove an earlier run's results and work, what makes it load first; no other file."""
        for name in (*_RESULTS, RECORD):
            (self.folder / name).unlink(missing_ok=True)
        for path in (self.spectrum, self.preheating, *self.folder.glob("checkpoint-*")):
            shutil.rmtree(path, ignore_errors=True)


def check_place(folder: Path, flag: str = "--output_dir") -> None:
    """Raise ``UsageError`` where ``folder`` cannot be made or written; nothing is loaded yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):  # gone at once; permissions alone say little
            return
    except NotADirectoryError:
        fault = "is no folder"
    except OSError as error:
        fault = f"takes no file ({error.strerror})"
    raise UsageError(f"`{flag}` '{folder}' cannot be written: '{place}' {fault}; choose another")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content if isinstance(content, dict) else None
