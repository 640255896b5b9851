"""Two runs do not share an output, and what is written follows the umask."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from pathlib import Path

import pytest
import yaml

from helpers import killing
from helpers.commands import call, questions, training
from helpers.faults import fault
from helpers.tiny_bench import FEW
from hrp.cli.locks import INSIDE, held, lock_beside
from hrp_lab.cli.bench_commands import main as bench


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data, a spectrum and an adapter made under a umask that shares with the group."""
    folder = tmp_path_factory.mktemp("made")
    before = os.umask(0o002)
    try:
        data = questions(folder)
        assert call("preheat", *training(data, folder / "spectrum")) == 0
        assert call("sft", *training(data, folder / "adapter")) == 0
        given = ("--spectrum", folder / "spectrum", "--lora_r", "2")
        assert call("init", *given, "--output_dir", folder / "start") == 0
    finally:
        os.umask(before)
    return folder


def flags(command: str, made: Path, output: Path) -> tuple:
    if command == "init":
        return ("--spectrum", made / "spectrum", "--lora_r", "2", "--output_dir", output)
    if command == "demo":
        return ("--steps", "2", "--out", output)
    given = training(made / "rows.jsonl", output)
    if command == "finetune":
        place = given.index("--completion_template")
        given[place : place + 2] = ("--task", "classification", "--label_column", "answer")
    return tuple(given)


@fault(
    "Two at once",
    "a second run on one output",
    command="sft, finetune, preheat, init, demo",
    outcome="refused, status 2: command, process, host, and since when",
)
@pytest.mark.parametrize("command", ["sft", "finetune", "preheat", "init", "demo"])
def test_a_second_run_is_told_who_writes_the_output(made, tmp_path, capsys, command):
    output = tmp_path / "out"
    place = output / INSIDE if command in ("sft", "finetune") else lock_beside(output)
    with held(place, "hrp sft", output):
        holder = json.loads((place / "holder.json").read_text())
        assert call(command, *flags(command, made, output)) == 2
    message = capsys.readouterr().err
    assert f"`hrp sft` (process {os.getpid()} on {holder['host']}) since" in message
    assert list(tmp_path.iterdir()) == []


def started(command: str, made: Path, place: Path, *more: str) -> int:
    """Run a command on the output ``place / "out"``, as a process of its own does."""
    if command == "bench run":
        where = ("--records", place / "out", "--cache", place / "cache")
        return bench(["run", *map(str, (made / "few.yaml", *where))])
    return call(command, *flags(command, made, place / "out"), *more)


def started_and_stopped(command: str, made: Path, place: Path) -> int:
    """Do the same, but stop for good as soon as the lock says who holds it."""
    write = Path.write_text

    def write_and_stop(path, *arguments, **settings):
        write(path, *arguments, **settings)
        if path.name == "holder.json":
            os.kill(os.getpid(), signal.SIGSTOP)

    Path.write_text = write_and_stop
    return started(command, made, place)


def stopped_as_it_holds_the_lock(command: str, made: Path, place: Path):
    process = killing.start(started_and_stopped, command, made, place, place=place)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in place.rglob("holder.json")):
        assert process.is_alive(), Path(f"{place}.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


RESUMES = {"sft": ["--resume"], "finetune": ["--resume"], "preheat": ["--resume"]}
QUICK_ONES = ("init", "preheat")
SLOW = ("sft", "finetune", "demo", "bench run")


@fault(
    "Two at once",
    "the lock of a killed process",
    command="sft, finetune, preheat, init, demo, bench run",
    outcome="taken over",
)
@pytest.mark.parametrize(
    "command",
    [*QUICK_ONES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_of_two_processes_one_wins_and_when_it_is_killed_the_next_takes_over(
    made, tmp_path, command
):
    place = tmp_path / "place"
    place.mkdir()
    (made / "few.yaml").write_text(yaml.safe_dump(FEW))
    first = stopped_as_it_holds_the_lock(command, made, place)
    (holder,) = place.rglob("holder.json")
    since = json.loads(holder.read_text())["since"]
    second = killing.run(started, command, made, place, place=tmp_path / "second")
    assert second.status == 2
    name = f"hrp-lab {command}" if command == "bench run" else f"hrp {command}"
    assert f"{name}: '{place / 'out'}' is being written by `{name}` (process {first.pid} on " in (
        second.said
    )
    assert f" since {since}; wait for it, or choose another output folder\n" in second.said
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    third = killing.run(started, command, made, place, *RESUMES.get(command, ()), place=place)
    assert third.status == 0, third.said
    assert not list(place.rglob("*hrp-lock*"))
    assert not list(place.rglob("holder.json"))


def take_turns(place: Path, rounds: int) -> None:
    """Hold the lock again and again, and note whenever it is not held alone."""
    for _ in range(rounds):
        try:
            with held(place / "lock", "hrp sft", place):
                mine = place / "mine"
                mine.mkdir()  # fails where another one is within
                (place / f"turn-{os.getpid()}-{time.monotonic_ns()}").touch()
                mine.rmdir()
        except BlockingIOError:
            continue


def test_a_lock_is_held_by_one_process_at_a_time(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    workers = [
        killing.start(take_turns, place, 60, place=tmp_path / str(number)) for number in range(4)
    ]
    for number, worker in enumerate(workers):
        worker.join()
        assert worker.exitcode == 0, (tmp_path / f"{number}.log").read_text()
    turns = {path.name.split("-")[1] for path in place.iterdir()}
    assert len(turns) >= 2
    assert not (place / "lock").exists()
    assert not (place / "mine").exists()


def test_everything_that_is_written_follows_the_umask(made):
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for name in ("spectrum", "adapter", "start")
        for path in (made / name, *(made / name).rglob("*"))
    }
    assert len(modes) > 30
    assert all(mode == (0o775 if path.is_dir() else 0o664) for path, mode in modes.items()), modes
