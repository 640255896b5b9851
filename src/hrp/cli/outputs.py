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

from accelerate import PartialState

from hrp.cli.failures import UsageError
from hrp.cli.resuming import changed
from hrp.files import write_text
from hrp.preheating.checkpoints import last_complete
from hrp.spectra.artefact import PROVENANCE_FILE
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
        given: folder of the spectrum to start from; None where the run makes its own.
    """

    folder: Path
    command: str
    settings: dict[str, Any]
    given: Path | None = None

    @property
    def spectrum(self) -> Path:
        """Folder of the spectrum, there once preheating is done."""
        return self.folder / SPECTRUM

    @property
    def preheating(self) -> Path:
        """Folder of preheating's checkpoints, gone once it is done."""
        return self.folder / PREHEATING

    def state(self) -> State:
        """What an earlier run left here; raises ``UsageError`` on a record that is none."""
        record = self._read_record()
        if record is None:
            found = any((self.folder / name).exists() for name in (*_RESULTS, PREHEATING))
            return "foreign" if found or self._checkpoints() else "absent"
        if record["finished"]:
            return "finished"
        # A run that failed before its first checkpoint left nothing to go on from.
        preheated = self.spectrum.exists() and _made_spectrum(record)
        begun = preheated or any(map(last_complete, (self.preheating, self.folder)))
        return "interrupted" if begun else "absent"

    def _checkpoints(self) -> list[Path]:
        found = self.folder.glob("checkpoint-*")
        return [path for path in found if path.is_dir() and path.name[11:].isdigit()]

    def check(self, overwrite: bool, resume: bool) -> bool:
        """Whether this run should go ahead; False if it is finished. Writes nothing.

        Raises:
            UsageError: the folder cannot be written; there is another run's work and neither flag
                is given; ``resume`` of a run with other settings; a spectrum, or a folder of its
                name, that would be removed and is not an earlier run's own.
        """
        check_place(self.folder)
        state = self.state()
        if state == "finished" and not overwrite:
            say(f"'{self.folder}' is finished: nothing to do; --overwrite runs it again")
            return False
        self._check_spectra()
        if overwrite or state == "absent":
            return True
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

    def record(self, finished: bool) -> None:
        """Write the record, atomically; makes the folder if need be."""
        self._write_record(
            {
                "command": self.command,
                "finished": finished,
                "settings": self.settings,
                "versions": installed_versions(),
            }
        )

    def _write_record(self, content: dict[str, Any]) -> None:
        write_text(self.folder / RECORD, json.dumps(content, indent=2) + "\n")

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
        record = self._read_record()
        differing = changed(record["settings"], self.settings) if record else []
        if differing:
            raise UsageError(
                f"the run in '{self.folder}' had other settings: {', '.join(differing)}; give "
                "them as they were, or pass --overwrite to begin again"
            )

    def _check_spectra(self) -> None:
        """Raise ``UsageError`` where `_clear` would remove a spectrum that no run here has made."""
        for work in (self.preheating, *self._checkpoints()):
            if self._is_given(work):
                raise UsageError(
                    f"`--spectrum` must be outside '{work}', where a run keeps its work, got "
                    f"'{self.given}'; move it, or choose another --output_dir"
                )
        record = self._read_record()
        ours = self._is_given(self.spectrum) or (record is not None and _made_spectrum(record))
        if self.spectrum.exists() and not ours:
            raise UsageError(
                f"'{self.spectrum}' was not made by the run in '{self.folder}' and is not "
                f"replaced; pass --spectrum {self.spectrum} to start from it, move it away, or "
                "choose another --output_dir"
            )
        if (self.preheating / PROVENANCE_FILE).exists():
            raise UsageError(
                f"'{self.preheating}' is a spectrum, where a run keeps its work; move it, or "
                "choose another --output_dir"
            )

    def _is_given(self, folder: Path) -> bool:
        """Whether the spectrum to start from is ``folder``, or below it."""
        return self.given is not None and self.given.resolve().is_relative_to(folder.resolve())

    def _clear(self) -> None:
        """Remove an earlier run's results and work; no other file, nor the spectrum given.

        Killed at any moment, it leaves what that run can be resumed from, or nothing: the record
        says first that it is not finished and goes last, and folders are moved away whole.
        """
        record = self._read_record()
        if record is not None:
            self._write_record(record | {"finished": False})
        for name in _RESULTS:
            (self.folder / name).unlink(missing_ok=True)
        staging = self.folder / _STAGING
        shutil.rmtree(staging, ignore_errors=True)
        for path in (*self._checkpoints(), self.preheating, self.spectrum):
            if path.exists() and not self._is_given(path):
                staging.mkdir(exist_ok=True)
                os.replace(path, staging / path.name)
        (self.folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(staging, ignore_errors=True)

    def _read_record(self) -> dict[str, Any] | None:
        """The record of the run that was here, or None; raises ``UsageError`` if it is broken."""
        path = self.folder / RECORD
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _broken(path, f"is not JSON ({error})") from error
        kinds = {"finished": bool, "settings": dict}
        if not isinstance(content, dict) or any(
            not isinstance(content.get(name), kind) for name, kind in kinds.items()
        ):
            raise _broken(path, "is not the record of a run of hrp")
        return content


def _broken(path: Path, fault: str) -> UsageError:
    return UsageError(
        f"'{path}' {fault}, so what is in its folder cannot be told; choose another --output_dir, "
        "or remove the file, after which its folder counts as another program's"
    )


def _made_spectrum(record: dict[str, Any]) -> bool:
    """Whether a run made its spectrum itself, and was not given one."""
    return record["settings"].get("spectrum") is None


def say(text: str) -> None:
    """Print once, however many processes there are."""
    PartialState().print(text)


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
