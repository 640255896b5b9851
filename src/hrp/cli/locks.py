"""Lets one process at a time write an output, and says who does."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from hrp.files import read_object

INSIDE = "_hrp-lock"  # what begins with an underscore is not pushed to the hub
_LOCK = "lock"
_HOLDER = "holder.json"


def lock_beside(folder: Path) -> Path:
    """Return the place of the lock of an output folder that appears all at once."""
    folder = Path(os.path.realpath(folder))
    return folder.parent / f".{folder.name}{INSIDE}"


@contextmanager
def held(place: Path, command: str, output: Path) -> Iterator[None]:
    """Hold the lock in the folder ``place`` while ``command`` writes ``output``.

    The lock of a process that died is taken over. Folders made for it are removed if left empty.

    Raises:
        BlockingIOError: another process holds it; the message says which one, and since when.
    """
    made = [path for path in (place, *place.parents) if not path.exists()]
    lock = _acquired(place, output)
    try:
        holder = {"command": command, "host": socket.gethostname(), "pid": os.getpid()}
        holder["since"] = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        (place / _HOLDER).write_text(json.dumps(holder), encoding="utf-8")
        yield
    finally:
        for name in (_HOLDER, _LOCK):
            (place / name).unlink(missing_ok=True)
        lock.release()
        for path in dict.fromkeys((place, *made)):
            with suppress(OSError):
                path.rmdir()


def _acquired(place: Path, output: Path) -> FileLock:
    while True:
        lock = FileLock(place / _LOCK)
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise BlockingIOError(
                f"'{output}' is being written by {_holder(place)}; wait for it, or choose another "
                "output folder"
            ) from None
        except (FileNotFoundError, FileExistsError):
            if place.is_file() or place.is_symlink():
                raise
            continue  # its holder has just ended and removed the folder
        if (place / _LOCK).exists():
            return lock
        lock.release()


def _holder(place: Path) -> str:
    holder = read_object(place / _HOLDER) or {}
    try:
        return "`{command}` (process {pid} on {host}) since {since}".format(**holder)
    except (TypeError, KeyError):
        return "another process"
