"""Real processes on the demo's word problems: killed, replaced, resumed."""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.faults import fault
from helpers.spectra_made import made_spectrum
from helpers.tiny_bench import FEW, TinyBench, spec
from hrp_lab.bench import engines
from hrp_lab.bench.context import Places, Setup
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.driver import Driver
from hrp_lab.bench.engines import Ray, Sequential, Workers
from hrp_lab.bench.protocol import experiment_from, load_experiment, plan
from hrp_lab.bench.record_store import find_records, load_records
from hrp_lab.cli.bench_commands import _engine, main

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes started here
STANDIN = Path(__file__).parents[3] / "experiments" / "standin-wordproblems.yaml"
COMMAND = "import sys; from hrp_lab.cli.bench_commands import main; sys.exit(main(sys.argv[1:]))"


def options(tmp_path: Path) -> list[str]:
    return ["--records", str(tmp_path / "records"), "--cache", str(tmp_path / "cache")]


def written(folder: Path) -> list[Path]:
    """Return the records' files, without what a killed process had not finished writing."""
    return list(folder.glob("[!.]*.json"))


def assert_complete(folder: Path) -> None:
    planned = {run.run_id for run in plan(load_experiment(STANDIN), {})}
    records = load_records(folder)
    assert {record.run_id for record in records} == planned
    assert len(written(folder)) == len(planned)
    assert {record.status for record in records} == {"ok"}


def killed_half_way(command: list[str], folder: Path) -> dict[Path, float]:
    """Start the benchmark, SIGKILL it after the second record; the records left, with times."""
    process = subprocess.Popen([sys.executable, "-c", COMMAND, *command], start_new_session=True)
    deadline = time.monotonic() + 120
    try:
        while len(written(folder)) < 2:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return {path: path.stat().st_mtime for path in written(folder)}


def test_a_killed_benchmark_completes_on_rerun_with_no_run_lost_or_doubled(tmp_path, capsys):
    folder = tmp_path / "records"
    command = ["run", str(STANDIN), *options(tmp_path)]
    left = killed_half_way(command, folder)
    assert 2 <= len(left) < 9
    assert all(json.loads(path.read_text()) for path in left)
    assert main(command) == 0
    assert f"{9 - len(left)} runs ({9 - len(left)} ok)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime for path in left} == left
    assert_complete(folder)


@pytest.mark.skipif(os.name != "posix", reason="kills a process by signal")
def test_a_killed_worker_is_replaced_and_its_run_done_again(tmp_path):
    engine = Workers(Places(tmp_path / "records", tmp_path / "cache"), 1)
    victims, submit = [], engine.submit

    def submit_and_kill(run) -> None:
        submit(run)
        if not victims:
            (worker,) = engine._busy
            victims.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)

    engine.submit = submit_and_kill
    said: list[str] = []
    driver = Driver(experiment_from(FEW), engine._places, said.append)
    summary = driver.run(engine)
    assert summary.ran == {"ok": 2}
    assert "a worker died (exit code -9)" in said[0]


def serve_once_ending(connection, places, threads, came_up):
    """Serve as a worker does, in its own process, but end at the first run of all workers."""
    honest, code = engines.work, places.records.parent / "code"

    def work(places, run):
        with contextlib.suppress(FileNotFoundError):
            status = int(code.read_text())
            code.unlink()
            if status < 0:
                os.kill(os.getpid(), -status)
            os._exit(status)
        return honest(places, run)

    engines.work = work
    engines._serve(connection, places, threads, came_up)


def never_come_up(*_):
    os._exit(1)


SLOWER_CODES = [pytest.param(code, marks=pytest.mark.slow) for code in (0, 3, 70, -signal.SIGTERM)]


@fault(
    "Kills and interrupts",
    "a worker that ends with any status",
    command="hrp-lab bench run",
    outcome="its run is done again",
)
@pytest.mark.skipif(os.name != "posix", reason="ends by signals")
@pytest.mark.parametrize("code", [*SLOWER_CODES, 1, -signal.SIGKILL])
def test_a_worker_that_ends_with_any_code_loses_its_job_alone(tmp_path, monkeypatch, code):
    (tmp_path / "code").write_text(str(int(code)))
    monkeypatch.setattr(engines, "_serve", serve_once_ending)
    engine = Workers(Places(tmp_path / "records", tmp_path / "cache"), 2)
    said: list[str] = []
    summary = Driver(experiment_from(FEW), engine._places, said.append).run(engine)
    assert summary.ran == {"ok": 2}
    assert len(load_records(tmp_path / "records")) == 2
    lost = [line for line in said if "a worker died" in line]
    assert len(lost) == 1
    assert f"(exit code {int(code)})" in lost[0]


def test_a_worker_that_cannot_start_after_another_could_loses_its_job_alone(tmp_path, monkeypatch):
    (tmp_path / "code").write_text("3")
    monkeypatch.setattr(engines, "_serve", serve_once_ending)
    engine = Workers(Places(tmp_path / "records", tmp_path / "cache"), 1)
    first, second = plan(experiment_from(FEW), {})
    engine.submit(first)
    assert engine.wait(60.0) == [engines.Result(first, lost="exit code 3")]
    monkeypatch.setattr(engines, "_serve", never_come_up)
    engine.submit(second)
    assert engine.wait(60.0) == [engines.Result(second, lost="exit code 1")]
    engine.close()


def test_workers_of_which_none_comes_up_end_the_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "_serve", never_come_up)
    engine = Workers(Places(tmp_path / "records", tmp_path / "cache"), 1)
    engine.submit(plan(experiment_from(FEW), {})[0])
    with pytest.raises(ChildProcessError, match="the worker processes cannot start"):
        engine.wait(60.0)


@pytest.mark.slow
def test_workers_that_cannot_start_end_the_benchmark_and_leave_no_record(tmp_path):
    script = tmp_path / "unguarded.py"  # each worker would import it, and so start the benchmark
    script.write_text(COMMAND.replace("; ", "\n"))
    command = ["run", str(STANDIN), *options(tmp_path), "--workers", "2"]
    ended = subprocess.run(
        [sys.executable, str(script), *command], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    assert "hrp-lab bench run: the worker processes cannot start" in ended.stderr
    assert not list((tmp_path / "records").glob("*.json"))


def test_engines_give_the_same_records(tmp_path):
    found = []
    for name, make in (("one", Sequential), ("two", lambda places: Workers(places, 2))):
        places = Places(tmp_path / name / "records", tmp_path / name / "cache")
        Driver(experiment_from(FEW), places, lambda line: None).run(make(places))
        found.append(find_records(places.records))
    assert set(found[0]) == set(found[1])
    for run_id, record in found[0].items():
        assert record.metrics["eval_loss"] == pytest.approx(
            found[1][run_id].metrics["eval_loss"], rel=1e-4
        )


class FakeContext:
    """Starts nothing; notes the GPUs that each process would have seen."""

    def __init__(self) -> None:
        self.seen: list[str | None] = []

    def Pipe(self):  # noqa: N802 - multiprocessing's name
        return multiprocessing.Pipe()

    def Event(self):  # noqa: N802
        return threading.Event()

    def Process(self, **_):  # noqa: N802
        context = self

        class Process:
            def start(self) -> None:
                context.seen.append(os.environ.get("CUDA_VISIBLE_DEVICES"))

        return Process()


def test_workers_are_spread_over_the_gpus_and_each_sees_one(tmp_path, monkeypatch):
    context = FakeContext()
    monkeypatch.setattr(engines, "_context", lambda: context)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    workers = Workers(Places(tmp_path, tmp_path), 5)
    for _ in range(3):
        workers._idle.append(workers._new())
    assert context.seen == ["4", "7", "4"]
    workers._idle.pop(0)  # one of the first GPU dies
    workers._idle.append(workers._new())
    workers._idle.append(workers._new())
    assert sorted(one.gpu for one in workers._idle) == ["4", "4", "7", "7"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


@pytest.mark.parametrize(("visible", "engine"), [("", Sequential), ("0", Sequential),
                                                 ("0,1", Workers)])  # fmt: skip
def test_one_worker_beside_several_gpus_is_a_process_that_sees_one(
    tmp_path, monkeypatch, visible, engine
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    options = argparse.Namespace(engine="local", workers=1)
    assert type(_engine(options, Places(tmp_path, tmp_path))) is engine


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_with_two_workers_resumes_after_a_kill(tmp_path):
    pytest.importorskip("ray")
    folder = tmp_path / "records"
    command = ["run", str(STANDIN), *options(tmp_path), "--engine", "ray", "--workers", "2"]
    left = killed_half_way(command, folder)
    assert 2 <= len(left) < 9
    assert main(command) == 0
    assert_complete(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_worker_that_dies_loses_one_run_which_is_done_again(tmp_path):
    ray = pytest.importorskip("ray")
    places = Places(tmp_path / "records", tmp_path / "cache")
    engine = Ray(places, 2)
    honest, once = engine._work, tmp_path / "died"

    @ray.remote(max_retries=0)
    def dying(places, run):
        once.touch()
        os._exit(1)

    class Saboteur:
        def remote(self, *arguments):
            return (honest if once.exists() else dying).remote(*arguments)

    engine._work = Saboteur()
    said: list[str] = []
    summary = Driver(experiment_from(FEW), places, said.append).run(engine)
    assert summary.ran == {"ok": 2}
    assert any("a worker died" in line for line in said)


def make_slowly(folder: Path):
    def make():
        (folder / str(os.getpid())).touch()
        time.sleep(1)
        return made_spectrum(), Costs(charged_steps=3)

    spectrum = Setup(TinyBench(folder), spec("hrp-ab")).shared("preheat", {}, make)
    assert Costs(**spectrum.provenance["costs"]) == Costs(charged_steps=3)


def test_of_processes_that_share_a_spectrum_one_makes_it_and_the_others_wait(tmp_path):
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=make_slowly, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len([path for path in tmp_path.iterdir() if path.is_file()]) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1
