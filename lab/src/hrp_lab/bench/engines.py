"""Engines do the driver's runs: in this process, in several processes, or on a Ray cluster.

All of them give back the same records; the driver alone writes them. It submits a run while fewer
than ``slots`` are under way, and waits for results of at least one unless a time passes first.
Closing ends at once; runs under way are lost.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from typing import Any

from hrp_lab.bench.context import Places
from hrp_lab.bench.record import Record, RunSpec

WORKER_MODULE = "hrp_lab.bench.run"
_CANNOT_START = (
    "the worker processes cannot start (see the traceback above); a script that calls "
    "`hrp_lab.cli.main` must do so under `if __name__ == '__main__'`. `--workers 1` needs none"
)
_BROKEN_EXIT = 70  # of a worker whose run raised what nobody caught


@dataclass(frozen=True)
class Result:
    """Hold the record of a run, or how the worker that did it was lost."""

    run: RunSpec
    record: Record | None = None
    lost: str = ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries' progress bars, logs and warnings off the screen during a run."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@lru_cache(maxsize=1)
def _bench(places: Places) -> Any:
    """Return this process's bench, with its models and data."""
    from hrp_lab.bench.context import Bench

    return Bench(places)


def work(places: Places, run: RunSpec) -> Record:
    """Do one run in this process."""
    from hrp_lab.bench.run import execute

    with quiet():
        return execute(_bench(places), run)


class Sequential:
    """Do one run after the other, in this process."""

    slots = 1

    def __init__(self, places: Places) -> None:
        self._places = places
        self._run: RunSpec | None = None

    def submit(self, run: RunSpec) -> None:
        """Keep the run until it is waited for."""
        self._run = run

    def wait(self, timeout_s: float | None) -> list[Result]:
        """Do the run; it cannot be cut short."""
        run, self._run = self._run, None
        return [Result(run, work(self._places, run))] if run else []

    def close(self) -> None:
        """Drop this process's models and data."""
        _bench.cache_clear()


class Workers:
    """Do runs in ``count`` processes spread over this machine's GPUs; one that dies is replaced."""

    def __init__(self, places: Places, count: int) -> None:
        self.slots = count
        self._places = places
        self._context = _context()
        self._gpus = visible_gpus()
        self._came_up = self._context.Event()  # once any of them has
        self._idle: list[_Worker] = []
        self._busy: dict[_Worker, RunSpec] = {}

    def submit(self, run: RunSpec) -> None:
        """Give the run to an idle process, or to a new one."""
        worker = self._idle.pop() if self._idle else self._new()
        self._busy[worker] = run
        with contextlib.suppress(BrokenPipeError):  # it died while idle; `wait` will see
            worker.connection.send(run)

    def _new(self) -> _Worker:
        mine, its = self._context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.slots)
        used = [worker.gpu for worker in (*self._idle, *self._busy)]
        gpu = min(self._gpus, key=used.count, default=None)
        told = its, self._places, threads, self._came_up
        process = self._context.Process(target=_serve, args=told)
        with _sees_only(gpu):
            process.start()
        its.close()
        return _Worker(process, mine, gpu)

    def wait(self, timeout_s: float | None) -> list[Result]:
        """Collect what has come back, and who has died.

        Raises:
            ChildProcessError: processes cannot start here, which no other process would mend.
        """
        ready = wait([worker.connection for worker in self._busy], timeout_s)
        results = []
        for worker in [worker for worker in self._busy if worker.connection in ready]:
            run = self._busy.pop(worker)
            try:
                results.append(Result(run, worker.connection.recv()))
                self._idle.append(worker)
            except (EOFError, ConnectionResetError):
                worker.process.join()
                if worker.process.exitcode == 1 and not self._came_up.is_set():
                    raise ChildProcessError(_CANNOT_START) from None
                results.append(Result(run, lost=f"exit code {worker.process.exitcode}"))
        return results

    def close(self) -> None:
        """Let idle processes end; kill the others."""
        for worker in self._busy:
            worker.process.kill()
        for worker in [*self._idle, *self._busy]:
            worker.connection.close()
            worker.process.join()
        self._idle, self._busy = [], {}


@dataclass(frozen=True, eq=False)
class _Worker:
    process: Any
    connection: Connection
    gpu: str | None = None


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    return [str(index) for index in range(torch.cuda.device_count())]


@contextlib.contextmanager
def _sees_only(gpu: str | None) -> Iterator[None]:
    """Let processes started within inherit one GPU: a Trainer would use all that it sees."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _context() -> Any:
    """Return how processes start: forked from a server that has imported, spawned beside a GPU.

    Some libraries start CUDA when they are imported (bitsandbytes, which PEFT imports where it is
    installed), and no fork of such a server can use a GPU.
    """
    import torch

    forks = "forkserver" in multiprocessing.get_all_start_methods()
    if torch.cuda.is_available() or not forks:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([WORKER_MODULE])
    return context


def _serve(connection: Connection, places: Places, threads: int, came_up: Any) -> None:
    """Do runs until the other end closes; end with the parent process, however it ends."""
    came_up.set()
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        while True:
            connection.send(work(places, connection.recv()))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except Exception:
        traceback.print_exc()
        os._exit(_BROKEN_EXIT)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class Ray:
    """Do ``count`` runs at a time as Ray tasks (extra ``ray``), on a new local cluster by default.

    Paths must mean the same on every node.
    """

    def __init__(self, places: Places, count: int, address: str | None = None) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise ValueError("`--engine ray` needs Ray: pip install 'hrp-lab[ray]'") from error
        self.slots = count
        self._ray = ray
        local = {} if address else {"num_cpus": count, "include_dashboard": False}
        ray.init(address=address, log_to_driver=False, logging_level="error", **local)
        self._places = ray.put(places)
        gpus = ray.cluster_resources().get("GPU", 0) / count
        remote = ray.remote(num_cpus=1, num_gpus=min(1.0, gpus), max_retries=0)
        self._work = remote(work)
        self._busy: dict[Any, RunSpec] = {}

    def submit(self, run: RunSpec) -> None:
        """Hand the run to the cluster."""
        self._busy[self._work.remote(self._places, run)] = run

    def wait(self, timeout_s: float | None) -> list[Result]:
        """Collect what has come back, and who has died."""
        ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=timeout_s)
        results = []
        for reference in ready:
            run = self._busy.pop(reference)
            try:
                results.append(Result(run, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                results.append(Result(run, lost=type(error).__name__))
        return results

    def close(self) -> None:
        """Leave the cluster, or end the local one."""
        for reference in self._busy:
            self._ray.cancel(reference, force=True)
        self._ray.shutdown()


Engine = Sequential | Workers | Ray
