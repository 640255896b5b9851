"""Writes files and folders whole or not at all, and never over what it would lose.

Everything is prepared in a staging folder beside its place and renamed. The name of a staging
folder tells what it is for, and a file lock in it whether its writer lives: once the writer is
dead, the folder is finished or removed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

Content = TypeVar("Content")

_PREFIX = ".hrp-"
_LOCK = "hrp-staging.lock"
_NEW = "new"
_OLD = "old"
_LOOKS, _PAUSE = 5, 0.01  # times that a missing folder is looked for, seconds between two


def write_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a file in a staging folder, then rename it to ``path``, and return that.

    The staged file has the suffix of ``path``, because matplotlib chooses a format by it. Missing
    folders are made.

    Raises:
        OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    with staging(path) as folder:
        staged = folder / f"{_NEW}{path.suffix}"
        write(staged)
        follow_umask(folder)
        with staged.open("rb") as file:
            os.fsync(file.fileno())  # so that the rename never goes ahead of the content
        os.replace(staged, path)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all; see `write_file`."""
    return write_file(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def write_folder(
    folder: Path,
    write: Callable[[Path], object],
    overwrite: bool = False,
    ours: Collection[str] = (),
) -> None:
    """Let ``write`` fill a staging folder, then put it at ``folder``.

    ``ours`` are files that may go though ``write`` does not make them anew each time.

    A process that is killed meanwhile leaves the old folder or the new one; between the two
    renames neither is there, until the next writer or reader calls `settle`.

    Raises:
        FileExistsError: ``folder`` exists and ``overwrite`` is false; or it is no folder, or holds
            a file or folder that ``write`` does not make anew, and which would be lost.
        OSError: the disk is full or the folder not writable; nothing is left behind.
    """
    folder = Path(os.path.realpath(folder))
    settle(folder)
    if folder.exists() and not overwrite:
        raise _exists(folder)
    with staging(folder) as container:
        staged = container / _NEW
        staged.mkdir()
        write(staged)
        if overwrite:
            anew = {*_entries(staged), *ours}
            read_folder(folder, lambda there: check_replaceable(there, anew))
        follow_umask(staged)
        _swap(container, folder, overwrite)


def read_folder(folder: Path, read: Callable[[Path], Content]) -> Content:
    """Return what ``read`` makes of a folder of `write_folder`, all of it from one save.

    Where the folder is replaced while it is read, it is read again; where it is missing, which it
    is between a writer's two renames, it is looked for a few times more.
    """
    settle(folder)
    looks = 0
    while True:
        looks += 1
        before = _identity(folder)
        try:
            content = read(folder)
        except Exception:
            settle(folder)
            if _identity(folder) == before and (before or looks >= _LOOKS):
                raise
            time.sleep(_PAUSE)
        else:
            if _identity(folder) == before:
                return content


def settle(folder: Path, clear: bool = False) -> None:
    """Finish the replacing of ``folder`` where a writer was killed between its two renames.

    Cheap where the folder is there. A reader who may not write in the place changes nothing. With
    ``clear``, whatever else dead writers of the folder have left is removed.
    """
    folder = Path(os.path.realpath(folder))
    if clear:
        clear_dead_staging(folder)
    elif not folder.exists():
        for container, _ in _staging_folders(folder):
            _finish(container, folder)


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """Yield a new, locked folder beside ``target`` to prepare it in, and remove it afterwards.

    First removes what dead processes left that were preparing the same target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_dead_staging(target)
    container, lock = _new_container(target)
    try:
        yield container
    finally:
        if _finish(container, target):
            _discard(container)
        lock.release()


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
            f"output folder '{folder}' holds {named(intruders)} besides what is replaced, which "
            "would be lost; move it away, or choose another folder"
        )


def check_as_recorded(folder: Path, record: str) -> None:
    """Raise ``FileExistsError`` if ``folder`` holds a file that its JSON ``record`` does not list.

    The record has the digests of a file's contents under "files"; a file with another content by
    now counts as not listed.
    """
    files = (read_object(folder / record) or {}).get("files")
    listed = files | {record: [digest(folder / record)]} if isinstance(files, dict) else {}
    foreign = [
        name
        for name, value in digests(folder).items()
        if not (isinstance(known := listed.get(name), list) and value in known)
    ]
    if foreign:
        raise FileExistsError(
            f"'{folder}' holds {named(foreign)}, which hrp did not write, or not as it is now; it "
            "is not replaced: move it away, or choose another folder"
        )


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file holds; None where it is not there, or holds another."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def named(names: list[str]) -> str:
    """Return the first of ``names`` in quotes, and how many more there are."""
    return repr(names[0]) + (f" and {len(names) - 1} more" if names[1:] else "")


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of every file below ``folder``, by its path in it."""
    files = [name for name in _entries(folder) if (folder / name).is_file()]
    return {name: digest(folder / name) for name in sorted(files)}


def digest(path: Path) -> str:
    """Return a digest of the content of a file."""
    with path.open("rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def follow_umask(folder: Path) -> None:
    """Give all files and folders in ``folder`` the mode that the process's umask asks for.

    safetensors and tempfile make files that only their owner may read. A new file tells the umask,
    which could otherwise only be read by setting it for every thread.
    """
    probe = folder / f"{_PREFIX}mode"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            entered = (mode & 0o444) >> 2 if path.is_dir() else 0
            special = stat.S_IMODE(path.stat().st_mode) & 0o7000
            path.chmod(special | mode | entered)


def _entries(folder: Path) -> list[str]:
    """List the files and folders below ``folder`` by their path in it; links are not followed."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def _exists(folder: Path) -> FileExistsError:
    return FileExistsError(
        f"output folder '{folder}' exists; choose another, or pass `overwrite=True`"
    )


def _swap(container: Path, folder: Path, overwrite: bool) -> None:
    """Rename the new folder to its place, after moving away what is there.

    Another writer, or a reader that settles, may come between the two renames.
    """
    for number in range(1000):
        try:
            os.rename(container / _NEW, folder)
            return
        except FileNotFoundError:
            if folder.exists() and not (container / _NEW).exists():
                return  # a reader has finished it
            raise
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if not overwrite:
                raise _exists(folder) from error
        with suppress(FileNotFoundError):
            os.rename(folder, container / f"{_OLD}{number}")
    raise OSError(f"'{folder}' is being replaced by others all the time; try again")


def _finish(container: Path, target: Path) -> bool:
    """Return whether ``container`` may be removed; put back what its writer left in its stead."""
    old: list[Path] = []
    with suppress(FileNotFoundError):  # its writer has ended since it was listed
        old = sorted(path for path in container.iterdir() if path.name.startswith(_OLD))
    if not old or target.exists():
        return True
    for whole in (container / _NEW, *reversed(old)):
        with suppress(OSError):
            os.rename(whole, target)
            return True
    return target.exists()


def _prefix(target: Path) -> str:
    """Return how the names of the staging folders of ``target`` begin; all are of one length."""
    return f"{_PREFIX}{blake2b(os.fsencode(target.name), digest_size=6).hexdigest()}-"


def _new_container(target: Path) -> tuple[Path, FileLock]:
    """Make a staging folder and lock it; another process may clear it before it is locked."""
    while True:
        container = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        lock = FileLock(container / _LOCK)
        with suppress(FileNotFoundError, FileExistsError, Timeout):
            lock.acquire(timeout=0)
            if (container / _LOCK).exists():
                return container, lock
            lock.release()


def _staging_folders(*targets: Path) -> list[tuple[Path, Path]]:
    """List the staging folders of ``targets``, which lie in one folder, each with its target."""
    parent, prefixes = targets[0].parent, {_prefix(target): target for target in targets}
    length = len(_prefix(targets[0]))
    beside = parent.iterdir() if parent.is_dir() else ()
    named_so = [path for path in beside if path.name[:length] in prefixes]
    return [(path, prefixes[path.name[:length]]) for path in named_so if _is_staging(path)]


def _is_staging(folder: Path) -> bool:
    """Return whether it has a lock, or nothing, as a kill leaves it before its lock and after it.

    Another user's folder, which cannot be looked into, is that user's to clear, and one that is
    gone by now was cleared by its writer.
    """
    with suppress(OSError):
        return (folder / _LOCK).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    return False


def clear_dead_staging(*targets: Path) -> None:
    """Remove, or finish, what processes that died left of preparing ``targets`` in one folder."""
    for container, target in _staging_folders(*targets):
        lock = FileLock(container / _LOCK)
        with suppress(OSError):  # among them filelock's Timeout: its writer is alive
            lock.acquire(timeout=0)
            if _finish(container, target):
                _discard(container)
            lock.release()


def _discard(container: Path) -> None:
    """Remove a staging folder, its lock last, so that a kill leaves what can be recognised."""
    for path in list(container.iterdir()):
        if path.name == _LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    (container / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        container.rmdir()


def _identity(folder: Path) -> tuple[int, ...]:
    """Return what tells a folder from the one that takes its place."""
    try:
        status = os.stat(folder)
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_ctime_ns
