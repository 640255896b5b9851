"""What is given out, when, and what becomes of it; with engines that do no real work."""

from __future__ import annotations

import time

import pytest

from helpers.tiny_bench import BASE
from hrp_lab.bench.context import Places
from hrp_lab.bench.driver import Driver
from hrp_lab.bench.engines import Result
from hrp_lab.bench.protocol import experiment_from, plan
from hrp_lab.bench.record import Record, RunSpec
from hrp_lab.bench.record_store import find_records, load_records, pack, write_record


def made(**changes):
    return experiment_from(
        BASE | {"learning_rates": [1e-3, 2e-3], "seeds": [0, 1], "arms": ["lora", "hrp-a", "hrp-b"]}
        | changes
    )  # fmt: skip


class Instant:
    """Ends runs last come, first served; loses those that ``lose`` says."""

    def __init__(self, slots: int = 1, lose=lambda run: False, loss=lambda run: 1.0) -> None:
        self.slots, self.seen, self.closed = slots, [], False
        self._under_way, self._lose, self._loss = [], lose, loss

    def submit(self, run: RunSpec) -> None:
        assert len(self._under_way) < self.slots
        self._under_way.append(run)
        self.seen.append(run)

    def wait(self, timeout_s):
        run = self._under_way.pop()
        if self._lose(run):
            return [Result(run, lost="exit code -9")]
        return [Result(run, Record(run, "ok", metrics={"eval_loss": self._loss(run)}))]

    def close(self) -> None:
        self.closed = True


def drive(tmp_path, experiment, engine, **options):
    said = []
    places = Places(tmp_path / "records", tmp_path / "cache")
    summary = Driver(experiment, places, said.append, **options).run(engine)
    return summary, said


@pytest.mark.parametrize("slots", [1, 3, 50])
def test_every_run_is_recorded_once_and_a_rerun_does_nothing(tmp_path, slots):
    experiment, engine = made(), Instant(slots)
    summary, _ = drive(tmp_path, experiment, engine)
    planned = {run.run_id for run in plan(experiment, {})}
    assert {one.run_id for one in load_records(tmp_path / "records")} == planned
    assert (summary.runs, summary.left, engine.closed) == (12, 0, True)
    again = Instant(slots)
    assert drive(tmp_path, experiment, again)[0].runs == 0
    assert again.seen == []


def test_only_what_is_missing_is_run(tmp_path):
    experiment = made(arms=["lora"])
    kept = plan(experiment, {})[1]
    write_record(Record(kept, "ok", metrics={"eval_loss": 2.0}), tmp_path / "records")
    engine = Instant()
    drive(tmp_path, experiment, engine)
    assert kept.run_id not in {run.run_id for run in engine.seen}
    assert find_records(tmp_path / "records")[kept.run_id].metrics["eval_loss"] == 2.0


def test_a_lost_run_is_done_again(tmp_path):
    lost = []

    def lose(run: RunSpec) -> bool:
        if run.seed == 1 and run.arm == "hrp-a" and run not in lost:
            lost.append(run)
            return True
        return False

    summary, said = drive(tmp_path, made(), Instant(2, lose))
    assert len(lost) == 2  # at each of two rates
    assert summary.ran == {"ok": 12}
    assert sum("will be done again" in line for line in said) == 2


def test_a_run_lost_twice_is_recorded_as_failed_and_no_other_run_suffers(tmp_path):
    experiment = made(widen=0)
    bad = plan(experiment, {})[3].run_id
    summary, _ = drive(tmp_path, experiment, Instant(2, lambda run: run.run_id == bad))
    assert summary.ran == {"failed": 1, "ok": 11}
    record = find_records(tmp_path / "records")[bad]
    assert record.reason == "its worker process died twice (exit code -9)"


def test_a_failure_is_done_again_only_when_asked(tmp_path):
    experiment = made(arms=["lora"], widen=0)
    spec = plan(experiment, {})[0]
    write_record(Record(spec, "failed", "out of luck"), tmp_path / "records")
    assert drive(tmp_path, experiment, Instant())[0].runs == 3
    assert drive(tmp_path, experiment, Instant(), retry_failed=True)[0].runs == 1
    assert find_records(tmp_path / "records")[spec.run_id].status == "ok"


def test_packed_records_are_not_run_again_and_a_retried_failure_replaces_its_line(tmp_path):
    experiment, records = made(arms=["lora"], widen=0), tmp_path / "records"
    spec = plan(experiment, {})[0]
    drive(tmp_path, experiment, Instant())
    write_record(Record(spec, "failed", "out of luck"), records)
    pack(records)
    engine = Instant()
    assert drive(tmp_path, experiment, engine)[0].runs == 0
    assert engine.seen == []
    assert drive(tmp_path, experiment, Instant(), retry_failed=True)[0].ran == {"ok": 1}
    assert [path.stem for path in records.iterdir()] == [spec.run_id]
    assert find_records(records)[spec.run_id].status == "ok"


def test_grids_widen_in_the_same_call(tmp_path):
    experiment = made(arms=["lora"], widen=2)
    summary, _ = drive(tmp_path, experiment, Instant(loss=lambda run: 1 - run.learning_rate))
    rates = {one.run.learning_rate for one in load_records(tmp_path / "records")}
    assert rates == {1e-3, 2e-3, 4e-3, 8e-3}
    assert (summary.runs, summary.left) == (8, 0)


def test_the_time_limit_ends_it_and_a_rerun_completes_it(tmp_path):
    class Slow(Instant):
        def wait(self, timeout_s):
            time.sleep(0.05)
            return super().wait(timeout_s)

    engine = Slow(2)
    summary, _ = drive(tmp_path, made(), engine, limit_s=0.3)
    assert 0 < summary.runs < 12
    assert engine.closed
    assert summary.left == 12 - summary.runs
    assert summary.wall_s < 0.6
    assert drive(tmp_path, made(), Instant())[0].runs == summary.left


def test_no_run_is_begun_that_would_not_end_in_time(tmp_path):
    class Slow(Instant):
        def wait(self, timeout_s):
            time.sleep(0.2)
            return super().wait(timeout_s)

    engine = Slow()
    summary, _ = drive(tmp_path, made(arms=["lora"]), engine, limit_s=0.5)
    assert len(engine.seen) == summary.runs == 2


def test_the_summary_states_the_throughput(tmp_path):
    summary, said = drive(tmp_path, made(arms=["lora"], widen=0), Instant())
    assert "4 runs (4 ok)" in str(summary)
    assert "runs an hour" in str(summary)
    assert "steps/s" in str(summary)
    assert said[-1].startswith("[4/4] gsm8k lora lr 0.002 seed 1: eval_loss 1.0000")
