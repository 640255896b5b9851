"""Writes files and folders whole or not at all, and never over what it would lose."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary sibling of ``path``, then rename it to ``path``.

    The sibling has the suffix of ``path``, because matplotlib chooses a format by it. Folders are
    made where they are missing. Returns ``path``.

    Raises:
        OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".hrp-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    staging = Path(name)
    try:
        write(staging)
        staging.chmod(0o666 & ~_umask())  # mkstemp's 0600 would shut out the rest of the team
        _flush(staging)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all; see `write_file`."""
    return write_file(path, lambda staging: staging.write_text(text, encoding="utf-8"))


def write_folder(folder: Path, write: Callable[[Path], object], overwrite: bool = False) -> None:
    """Let ``write`` fill a temporary sibling of ``folder``, then rename it to ``folder``.

    Raises:
        FileExistsError: ``folder`` exists and ``overwrite`` is false; or it is no folder, or holds
            a file or folder that ``write`` does not make anew, and which would be lost.
        OSError: the disk is full or the place not writable; nothing is left behind.
    """
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"output folder '{folder}' exists; choose another, or pass `overwrite=True`"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        write(staging)
        check_replaceable(folder, _entries(staging))
        staging.chmod(0o777 & ~_umask())  # mkdtemp's 0700 would shut out the rest of the team
        _swap(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(folder: Path, anew: Collection[str]) -> None:
    """Raise ``FileExistsError`` if ``folder`` holds what is not among ``anew`` (or is a file).

    ``anew`` are paths in the folder, those of its sub-folders included.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"'{folder}' is a file and not replaced by a folder; choose another")
    intruders = sorted(set(_entries(folder)) - set(anew))
    if intruders:
        raise FileExistsError(
            f"output folder '{folder}' holds {intruders[0]!r}"
            + (f" and {len(intruders) - 1} more" if intruders[1:] else "")
            + " besides what is replaced, which would be lost; move it away, or choose another "
            "folder"
        )


def _entries(folder: Path) -> list[str]:
    """Files and folders below ``folder``, by their path in it; links are not followed."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def _swap(staging: Path, folder: Path) -> None:
    if not folder.exists():
        staging.rename(folder)
        return
    retired = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(retired / folder.name)
    staging.rename(folder)
    shutil.rmtree(retired)


def _flush(path: Path) -> None:
    """Wait until the content is on the disk, so that a rename never goes ahead of it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
