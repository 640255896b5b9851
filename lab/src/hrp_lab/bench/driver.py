"""Runs an experiment through an engine: only what is missing, in order, within a time limit."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from hrp.files import clear_dead_staging
from hrp_lab.bench.context import Places
from hrp_lab.bench.engines import Engine, Result
from hrp_lab.bench.protocol import Experiment, plan
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.record_store import find_records, missing, record_path, write_record
from hrp_lab.bench.run import now, stamped

_MARGIN = 1.1  # a run is not begun unless this many times a usual run's duration is left
_ATTEMPTS = 2  # a worker killed by the machine's owner loses a run once; twice is the run's fault


@dataclass
class Summary:
    """Count what one call did."""

    ran: Counter[str] = field(default_factory=Counter)  # records written, by status
    left: int = 0  # runs of the plan that have no record yet
    steps: int = 0  # of fine-tuning, in the records written
    wall_s: float = 0.0

    @property
    def runs(self) -> int:
        """Return the number of records written."""
        return self.ran.total()

    def __str__(self) -> str:
        """Return one line for the end."""
        kinds = ", ".join(f"{count} {status}" for status, count in sorted(self.ran.items()))
        seconds = self.wall_s or 1.0
        return (
            f"{self.runs} runs ({kinds or 'nothing to do'}) in {self.wall_s:.0f} s: "
            f"{3600 * self.runs / seconds:.0f} runs an hour, {self.steps / seconds:.1f} steps/s; "
            f"{self.left} runs left"
        )


class Driver:
    """Give out runs, write records, replace what is lost.

    Args:
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
        self._records = find_records(places.records)
        planned = plan(experiment, self._records)
        clear_dead_staging(*(record_path(run, places.records) for run in planned))
        self._waiting = missing(planned, self._records, retry_failed)
        self._tries: Counter[str] = Counter()
        self._begun: dict[str, float] = {}
        self._durations: list[float] = []
        self._began = time.monotonic()
        self._limit_s = limit_s
        self.summary = Summary()

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
        self.summary.left = len(missing(plan(self._experiment, self._records), self._records))
        self.summary.wall_s = time.monotonic() - self._began
        return self.summary

    def _give_out(self, engine: Engine) -> bool:
        given = False
        while len(self._begun) < engine.slots and self._is_worth_beginning():
            if not self._waiting:  # grids widen as records come in
                planned = missing(plan(self._experiment, self._records), self._records)
                self._waiting = [run for run in planned if run.run_id not in self._tries]
            if not self._waiting:
                break
            run = self._waiting.pop(0)
            self._tries[run.run_id] += 1
            self._begun[run.run_id] = time.monotonic()
            engine.submit(run)
            given = True
        return given

    def _left_s(self) -> float | None:
        if self._limit_s is None:
            return None
        return max(0.0, self._limit_s - (time.monotonic() - self._began))

    def _is_worth_beginning(self) -> bool:
        left = self._left_s()
        return left is None or left > _MARGIN * statistics.median(self._durations or [0.0])

    def _take_in(self, result: Result) -> None:
        run, record = result.run, result.record
        seconds = time.monotonic() - self._begun.pop(run.run_id)
        if record is not None:
            self._durations.append(seconds)
            self._keep(record, seconds)
        elif self._tries[run.run_id] < _ATTEMPTS:
            self._waiting.insert(0, run)
            self._say(f"a worker died ({result.lost}); {_name(run)} will be done again")
        else:
            text = f"its worker process died twice ({result.lost})"
            self._keep(stamped(Record(run, "failed", text), self._places, now(), ""), seconds)

    def _keep(self, record: Record, seconds: float) -> None:
        write_record(record, self._places.records)
        self._records[record.run_id] = record
        self.summary.ran[record.status] += 1
        self.summary.steps += record.costs.finetune_steps
        metric = str(record.run.config["metric"])
        outcome = (
            f"{metric} {record.metrics[metric]:.4f}"
            if record.status == "ok"
            else f"{record.status}: {record.reason}"
        )
        total = self.summary.runs + len(self._begun) + len(self._waiting)
        self._say(
            f"[{self.summary.runs}/{total}] {_name(record.run)}: {outcome}  ({seconds:.0f} s)"
        )


def _name(run: RunSpec) -> str:
    return f"{run.task} {run.arm} lr {run.learning_rate:g} seed {run.seed}"
