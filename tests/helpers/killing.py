"""Runs jobs in processes of their own, which can be killed before or after a chosen rename.

The processes are forked from a server that has everything imported, so that a job takes about a
second and a kill hits the job and not its imports.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("hrp.cli.preheat", "hrp.cli.sft", "hrp.cli.finetune", "hrp.cli.init", "hrp.cli.demo"),
        *("hrp.demo.runs", "hrp.report.run_page", "transformers.models.llama"),
        *("hrp_lab.bench.driver", "hrp_lab.bench.run", "hrp_lab.cli.bench_commands"),
    ]
)
RENAMES = ("rename", "replace")
REMOVALS = ("unlink", "remove", "rmdir")


@dataclass(frozen=True)
class Ended:
    """Says how a job's process ended, how many moments it passed, and what it printed."""

    status: int | None
    moments: int
    said: str

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def watch(place: Path, moment: int | None, names: tuple[str, ...]) -> Callable[[], int]:
    """Kill this process at the ``moment``-th call of ``names`` of `os` on a path below ``place``.

    An even moment is before a call, an odd one after it. Returns a counter of moments passed.
    """
    passed = itertools.count()

    def pass_moment(path: Any) -> None:
        if str(path).startswith(str(place)) and next(passed) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*paths: Any, **settings: Any) -> None:
            pass_moment(paths[-1])
            change(*paths, **settings)
            pass_moment(paths[-1])

        return changed

    for name in names:
        setattr(os, name, watched(getattr(os, name)))
    return lambda: next(passed)


def start(
    job: Callable[..., int | None],
    *arguments: Any,
    place: Path,
    moment: int | None = None,
    names: tuple[str, ...] = RENAMES,
) -> BaseProcess:
    """Begin ``job`` in a process of its own, watched below ``place``; it prints beside that."""
    process = FORKS.Process(target=_child, args=(job, arguments, place, moment, names))
    process.start()
    return process


def run(
    job: Callable[..., int | None],
    *arguments: Any,
    place: Path,
    moment: int | None = None,
    names: tuple[str, ...] = RENAMES,
) -> Ended:
    """Do ``job`` in a process of its own to its end, or until it is killed; see `watch`."""
    counted, said = _beside(place)
    counted.unlink(missing_ok=True)
    process = start(job, *arguments, place=place, moment=moment, names=names)
    process.join(300)
    process.kill()
    process.join()
    moments = int(counted.read_text()) if counted.exists() else -1
    return Ended(process.exitcode, moments, said.read_text(errors="replace"))


def _beside(place: Path) -> tuple[Path, Path]:
    return Path(f"{place}.moments"), Path(f"{place}.log")


def _child(
    job: Callable[..., int | None],
    arguments: tuple[Any, ...],
    place: Path,
    moment: int | None,
    names: tuple[str, ...],
) -> None:
    import torch

    gc.freeze()  # what was imported need not be looked through by every collection
    torch.set_num_threads(1)
    counted, said = _beside(place)
    log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    passed = watch(place, moment, names)
    status = job(*arguments)
    counted.write_text(str(passed()))
    os._exit(status or 0)
