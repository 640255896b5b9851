"""Keeps output folders that tell a finished run from an interrupted one.

The record `hrp.json` lists every file that HRP wrote, with its digest. What is not listed there,
or has another content by now, is the user's: it is neither removed nor replaced.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from accelerate import PartialState

from hrp.cli.failures import UsageError
from hrp.cli.locks import INSIDE, held
from hrp.cli.report import PAGE
from hrp.errors import SpectrumFormatError
from hrp.files import (
    clear_dead_staging,
    digest,
    digests,
    follow_umask,
    named,
    read_object,
    staging,
    write_text,
)
from hrp.preheating.binding import changed
from hrp.preheating.checkpoints import (
    MODEL_FILES,
    OWN_FOLDER,
    Checkpoints,
    checkpoint_folders,
    foreign_files,
    foreign_in_checkpoint,
    is_marked,
    last_complete,
)
from hrp.spectra.artefact import FILES as SPECTRUM_FILES
from hrp.spectra.artefact import read_provenance
from hrp.versions import installed_versions

RECORD = "hrp.json"
SPECTRUM = "spectrum"
_CLEARED = "cleared"  # in staging: what an earlier run left
_PUBLISHED = "published"  # in staging: the adapter
# This is moved last, since PEFT takes no folder without it for an adapter.
_LAST = "adapter_config.json"

State = Literal["absent", "finished", "interrupted"]


@dataclass(frozen=True)
class Output:
    """Describes one run's output folder.

    Args:
        folder: of the adapter; the spectrum and the work in progress are in sub-folders.
        command: that writes it, for messages.
        settings: what a resumed run must have in common with the interrupted one.
        given: folder of the spectrum to start from; None where the run makes its own.
        length: settings that a resumed run may change, but not a finished one.
        pushes: whether HF Trainer pushes to the hub, and puts files into ``folder`` for that.
    """

    folder: Path
    command: str
    settings: dict[str, Any]
    given: Path | None = None
    length: dict[str, Any] = field(default_factory=dict)
    pushes: bool = False

    @property
    def spectrum(self) -> Path:
        """Return the folder of the spectrum, there once preheating is done."""
        return self.folder / SPECTRUM

    @property
    def preheating(self) -> Path:
        """Return the folder of preheating's checkpoints, gone once it is done."""
        return self.folder / OWN_FOLDER

    @property
    def lock(self) -> Path:
        """Return the folder of the lock that a run holds while it writes here."""
        return self.folder / INSIDE

    def state(self) -> State:
        """Tell what an earlier run left; raises ``UsageError`` on a record that is none."""
        record = self.read_record()
        if record is None:
            return "absent"
        if record["finished"]:
            return "finished"
        # A run that failed before its first checkpoint left nothing to go on from.
        begun = self._made_spectrum(record) or any(
            map(last_complete, (self.preheating, self.folder))
        )
        return "interrupted" if begun else "absent"

    def check(self, overwrite: bool, resume: bool) -> bool:
        """Return whether this run should go ahead, not so if it is finished. Makes nothing.

        Raises:
            UsageError: the folder cannot be written; there is another run's work and neither flag
                is given; it was made, or is resumed, with other settings; it holds what HRP did
                not write where this run writes.
        """
        state, record = self.state(), self.read_record()
        if state == "finished" and not overwrite:
            self._check_same(record, "is finished", self.length)
            self._clear_dead_staging()  # of a run that was killed at its very end
            say(f"'{self.folder}' is finished: nothing to do; --overwrite runs it again")
            return False
        self._check_spectra(record)
        if foreign := self._foreign(record):
            raise UsageError(
                f"'{self.folder}' holds the work of another program: hrp did not write "
                f"{named(foreign)}, or not as it is now, and never replaces it; choose another "
                "--output_dir, or move it away"
            )
        if overwrite or state == "absent":
            return True
        if not resume:
            raise UsageError(
                f"'{self.folder}' holds an interrupted run; pass --resume to go on, or "
                "--overwrite to begin again"
            )
        self._check_same(record, "is interrupted", {})
        return True

    def begin(self, overwrite: bool) -> None:
        """Make the folder ready, after `check`."""
        self._clear_dead_staging()
        if overwrite or self.state() == "absent":
            self._clear()
        begun = {} if self.read_record() else {"run": uuid4().hex, "files": {}}
        self.update(
            command=self.command,
            finished=False,
            settings=self.settings,
            length=self.length,
            versions=installed_versions(),
            **begun,
        )

    def publish(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` fill a staging folder, then move its files here, what makes it load last.

        Nothing is moved if ``write`` fails, or if a file that HRP did not write is in the way.
        """
        with staging(self.folder / _PUBLISHED) as container:
            staged = container / "new"
            staged.mkdir()
            write(staged)
            follow_umask(staged)
            made = digests(staged)
            record = self.read_record() or {}
            pushed = MODEL_FILES if self.pushes else ()  # copied here by HF Trainer in this run
            in_the_way = [n for n in made if n not in pushed and not self._is_ours(n, record)]
            if in_the_way:
                raise UsageError(
                    f"'{self.folder}' holds {named(in_the_way)}, which hrp did not write and does "
                    "not replace; move it away and pass --resume"
                )
            files = {k: [*record.get("files", {}).get(k, ()), v] for k, v in made.items()}
            self.update(files=record.get("files", {}) | files)
            for name in sorted(made, key=lambda name: name == _LAST):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(staged / name, self.folder / name)
        self.update(files={name: [value] for name, value in made.items()}, finished=True)

    def discard(self) -> None:
        """Remove the work of a run whose result is elsewhere, and the folder if left empty."""
        Checkpoints(self.folder).remove()
        if self.read_record() is not None:
            clear_dead_staging(self.folder / RECORD)
            (self.folder / RECORD).unlink()
            with suppress(OSError):
                self.folder.rmdir()

    def update(self, **changes: Any) -> None:
        """Change fields of the record."""
        content = (self.read_record() or {}) | changes
        write_text(self.folder / RECORD, json.dumps(content, indent=2) + "\n")

    def _clear_dead_staging(self) -> None:
        staged = (RECORD, _CLEARED, _PUBLISHED, SPECTRUM, PAGE)
        clear_dead_staging(*(self.folder / name for name in staged))

    def _check_same(self, record: Any, state: str, more: dict[str, Any]) -> None:
        before = {"command": record["command"]} | record["settings"] | record.get("length", {})
        differing = changed(before, {"command": self.command} | self.settings | more)
        if differing:
            raise UsageError(
                f"the run in '{self.folder}' {state} and had other settings: "
                f"{', '.join(differing)}; give them as they were, choose another --output_dir, or "
                "pass --overwrite to begin again"
            )

    def _check_spectra(self, record: dict[str, Any] | None) -> None:
        """Raise ``UsageError`` where a spectrum is in the way that no run here has made."""
        for work in (self.preheating, *checkpoint_folders(self.folder)):
            if self._is_given(work):
                raise UsageError(
                    f"`--spectrum` must be outside '{work}', where a run keeps its work, got "
                    f"'{self.given}'; move it, or choose another --output_dir"
                )
        ours = self._is_given(self.spectrum) or self._made_spectrum(record)
        if os.path.lexists(self.spectrum) and not ours:
            raise UsageError(
                f"'{self.spectrum}' was not made by the run in '{self.folder}' and is not "
                f"replaced; pass --spectrum {self.spectrum} to start from it, move it away, or "
                "choose another --output_dir"
            )

    def _made_spectrum(self, record: dict[str, Any] | None) -> bool:
        """Return whether the recorded run itself made the spectrum that is here."""
        run = spectrum_provenance(self.spectrum).get("run")
        return bool(run) and record is not None and run == record.get("run")

    def _is_given(self, folder: Path) -> bool:
        """Return whether the spectrum to start from is ``folder``, or below it."""
        return self.given is not None and self.given.resolve().is_relative_to(folder.resolve())

    def _foreign(self, record: dict[str, Any] | None) -> list[str]:
        """List what HRP did not write in the places where this run writes."""
        names = sorted(MODEL_FILES | set((record or {}).get("files", {})))
        foreign = [name for name in names if not self._is_ours(name, record or {})]
        for checkpoint in checkpoint_folders(self.folder):
            foreign += foreign_in_checkpoint(checkpoint)
        foreign += [f"{OWN_FOLDER}/{name}" for name in foreign_files(self.preheating)]
        if self.spectrum.is_dir() and not self._is_given(self.spectrum):
            held = {path.name for path in self.spectrum.iterdir()}
            foreign += [f"{SPECTRUM}/{name}" for name in sorted(held - set(SPECTRUM_FILES))]
        return foreign

    def _is_ours(self, name: str, record: dict[str, Any]) -> bool:
        """Return whether the file may be replaced: it is not there, or as HRP wrote it."""
        path = self.folder / name
        if not os.path.lexists(path):
            return True
        known = list(record.get("files", {}).get(name, ()))
        for checkpoint in checkpoint_folders(self.folder):  # from which HF Trainer pushes a copy
            if is_marked(checkpoint) and (checkpoint / name).is_file() and name in MODEL_FILES:
                known.append(digest(checkpoint / name))
        return path.is_file() and digest(path) in known

    def _clear(self) -> None:
        """Remove an earlier run's results and work; no other file, nor the spectrum given.

        Killed at any moment, it leaves what that run can be resumed from, or nothing: the record
        says first that it is not finished and goes last, and folders are moved away whole.
        """
        record = self.read_record()
        if record is None:
            return
        self.update(finished=False)
        for name in record.get("files", {}):
            if self._is_ours(name, record):
                (self.folder / name).unlink(missing_ok=True)
        spectra = [self.spectrum] if self._made_spectrum(record) else []
        with staging(self.folder / _CLEARED) as container:
            for path in (*checkpoint_folders(self.folder), self.preheating, *spectra):
                if path.exists() and not self._is_given(path):
                    os.replace(path, container / path.name)
            (self.folder / RECORD).unlink()

    def read_record(self) -> dict[str, Any] | None:
        """Read the record of the run that was here, or None; ``UsageError`` if it is broken."""
        path = self.folder / RECORD
        if not os.path.lexists(path):
            return None
        content = read_object(path)
        if content is not None:
            whole: dict[str, Any] = {"files": {}, "length": {}} | content
            mappings = [whole.get(name) for name in ("settings", "files", "length")]
            if (
                isinstance(whole.get("command"), str)
                and isinstance(whole.get("finished"), bool)
                and all(isinstance(mapping, dict) for mapping in mappings)
            ):
                return content
        raise UsageError(
            f"'{path}' is not the record of a run of hrp, so what is in its folder cannot be told; "
            "choose another --output_dir, or remove the file, after which its folder counts as "
            "another program's"
        )


def spectrum_provenance(folder: Path) -> dict[str, Any]:
    """Read the provenance of the spectrum in ``folder``; empty where there is none."""
    try:
        return read_provenance(folder)
    except (OSError, SpectrumFormatError):
        return {}


def locked(place: Path, command: str, output: Path) -> AbstractContextManager[None]:
    """Return the lock of an output, see `hrp.cli.locks`; the first process holds it for all."""
    check_place(output)
    if not PartialState().is_main_process:
        return nullcontext()
    return held(place, f"hrp {command}", output)


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
