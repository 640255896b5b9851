"""Runs an experiment through an engine: only what is missing, in order, within a time limit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hrp.files import clear_dead_staging
from hrp_lab.bench.context import Places
from hrp_lab.bench.engines import Engine, Result
from hrp_lab.bench.protocol import Experiment, plan
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.record_store import find_records, missing, record_path, write_record
from hrp_lab.bench.run import now, stamped
from hrp_lab.bench.schedule import Job, Schedule

_MARGIN = 1.1  # a run is not begun unless this many times a usual run's duration is left


@dataclass
class Summary:
    """Count what one call did.

    Args:
        ran: records written, by status.
        left: runs of the plan that have no record yet.
        steps: optimizer steps in the records written, those of preheating only where it was done.
        wall_s: seconds.
    """

    ran: dict[str, int] = field(default_factory=dict)
    left: int = 0
    steps: int = 0
    wall_s: float = 0.0

    @property
    def runs(self) -> int:
        """Return the number of records written."""
        return sum(self.ran.values())

    def __str__(self) -> str:
        """Return one line for the end."""
        kinds = ", ".join(f"{count} {status}" for status, count in sorted(self.ran.items()))
        hour = 3600 * self.runs / self.wall_s if self.wall_s else 0.0
        rate = self.steps / self.wall_s if self.wall_s else 0.0
        return (
            f"{self.runs} runs ({kinds or 'nothing to do'}) in {self.wall_s:.0f} s: {hour:.0f} "
            f"runs an hour, {rate:.1f} steps/s; {self.left} runs left"
        )


class Driver:
    """Give out jobs, write records, replace what is lost.

    Args:
        experiment: what to run.
        places: where.
        say: prints one line a run.
        limit_s: seconds after which nothing more is done.
        retry_failed: whether runs whose record is a failure are done again.
    """

    def __init__(
        self,
        experiment: Experiment,
        places: Places,
        say: Callable[[str], None] = print,
        limit_s: float | None = None,
        retry_failed: bool = False,
    ) -> None:
        self._experiment, self._places, self._say = experiment, places, say
        self._limit_s = limit_s
        self._records = find_records(places.records)
        planned = plan(experiment, self._records)
        clear_dead_staging(*(record_path(run, places.records) for run in planned))
        self._schedule = Schedule(self._missing(retry_failed), self._missing)
        self._began = time.monotonic()
        self._begun: dict[Job, float] = {}
        self._durations: list[float] = []
        self.summary = Summary()

    def _missing(self, retry_failed: bool = False) -> list[RunSpec]:
        """Return the runs to be done; grids widen as records come in."""
        return missing(plan(self._experiment, self._records), self._records, retry_failed)

    def run(self, engine: Engine) -> Summary:
        """Do all that is missing, or all that the time limit allows."""
        try:
            while self._give_out(engine) or self._begun:
                for result in engine.wait(self._left_s()):
                    self._take_in(result)
                if self._left_s() == 0.0:
                    break
        finally:
            engine.close()
        self.summary.left = len(self._missing())
        self.summary.wall_s = time.monotonic() - self._began
        return self.summary

    def _give_out(self, engine: Engine) -> bool:
        given = False
        while len(self._begun) < engine.slots and self._is_worth_beginning():
            job = self._schedule.take()
            if job is None:
                break
            self._begun[job] = time.monotonic()
            engine.submit(job)
            given = True
        return given

    def _left_s(self) -> float | None:
        if self._limit_s is None:
            return None
        return max(0.0, self._limit_s - (time.monotonic() - self._began))

    def _is_worth_beginning(self) -> bool:
        left = self._left_s()
        usual = statistics.median(self._durations) if self._durations else 0.0
        return left is None or left > _MARGIN * usual

    def _take_in(self, result: Result) -> None:
        job = result.job
        seconds = time.monotonic() - self._begun.pop(job)
        if result.lost:
            self._lose(job, result.lost)
            return
        self._schedule.done(job)
        if result.record is not None:
            self._durations.append(seconds)
            self._keep(result.record, seconds)

    def _lose(self, job: Job, reason: str) -> None:
        if self._schedule.lost(job):
            self._say(f"a worker died ({reason}); {_name(job.spec)} will be done again")
        elif job.makes is None:
            text = f"its worker process died twice ({reason})"
            record = stamped(Record(job.spec, "failed", text), self._places, now(), "")
            self._keep(record, 0.0)

    def _keep(self, record: Record, seconds: float) -> None:
        write_record(record, self._places.records)
        self._records[record.run_id] = record
        self.summary.ran[record.status] = self.summary.ran.get(record.status, 0) + 1
        self.summary.steps += record.costs.finetune_steps
        metric = str(record.run.config["metric"])
        outcome = (
            f"{metric} {record.metrics[metric]:.4f}"
            if record.status == "ok"
            else f"{record.status}: {record.reason}"
        )
        begun = sum(job.makes is None for job in self._begun)
        total = self.summary.runs + begun + self._schedule.runs_left
        self._say(
            f"[{self.summary.runs}/{total}] {_name(record.run)}: {outcome}  ({seconds:.0f} s)"
        )


def _name(run: RunSpec) -> str:
    return f"{run.task} {run.arm} lr {run.learning_rate:g} seed {run.seed}"
