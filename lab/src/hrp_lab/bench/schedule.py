"""Orders jobs: what runs share is made just before the first of them needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hrp_lab.bench.arms import ARMS
from hrp_lab.bench.record import RunSpec
from hrp_lab.bench.spectrum_cache import shared_key

ATTEMPTS = 2  # a worker killed by the machine's owner loses a run once; twice is the run's fault


@dataclass(frozen=True, eq=False)
class Job:
    """Describe a run to be done or, with ``makes``, only what it shares with others.

    Args:
        spec: the run.
        makes: name of what is shared that this job makes.
        needs: name of what must have been made before.
    """

    spec: RunSpec
    makes: str | None = None
    needs: str | None = None


def need(spec: RunSpec) -> str | None:
    """Return a name for what a run shares, equal for runs that share.

    It tells them apart at least as finely as the cache folder does.
    """
    arm = ARMS[spec.arm]
    if arm.shares is None:
        return None
    settings = {name: dict(spec.config[name]) for name in arm.sections}
    for section, field in (("hrp", "scale"), ("auto", "direction")):
        settings.get(section, {}).pop(field, None)
    if "hrp" in settings:  # without a rate of its own, preheating's depends on fine-tuning's
        settings["hrp"].setdefault("learning_rate", spec.learning_rate)
    kind = getattr(arm.shares, "__name__", "shared")
    return shared_key(kind, spec, {"steps": spec.config["steps"], **settings})


class Schedule:
    """Hold the jobs to be done, in order; a run waits until what it needs has been tried.

    Args:
        runs: to begin with.
        more: further runs, asked for whenever nothing else is left.
    """

    def __init__(self, runs: Iterable[RunSpec], more: Callable[[], list[RunSpec]]) -> None:
        self._more = more
        self._waiting: list[Job] = []
        self._given: set[str] = set()
        self._ready: set[str] = set()
        self._attempts: dict[str, int] = {}
        self._add(runs)

    def _add(self, runs: Iterable[RunSpec]) -> None:
        for spec in runs:
            if spec.run_id in self._given:
                continue
            self._given.add(spec.run_id)
            needs = need(spec)
            if needs and needs not in self._given:
                self._given.add(needs)
                self._waiting.append(Job(spec, makes=needs))
            self._waiting.append(Job(spec, needs=needs))

    @property
    def runs_left(self) -> int:
        """Return the number of runs not yet given out."""
        return sum(job.makes is None for job in self._waiting)

    def take(self) -> Job | None:
        """Take the first job that may be done now; None where there is none at present."""
        if not self._waiting:
            self._add(self._more())
        for index, job in enumerate(self._waiting):
            if job.needs is None or job.needs in self._ready:
                return self._waiting.pop(index)
        return None

    def done(self, job: Job) -> None:
        """Note that a job is over, whether it succeeded or failed."""
        if job.makes:
            self._ready.add(job.makes)

    def lost(self, job: Job) -> bool:
        """Note that a job's worker died; return whether the job is to be done again."""
        identity = job.makes or job.spec.run_id
        self._attempts[identity] = self._attempts.get(identity, 0) + 1
        if self._attempts[identity] < ATTEMPTS:
            self._waiting.insert(0, job)
            return True
        self.done(job)
        return False
