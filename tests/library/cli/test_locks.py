"""Two runs do not share an output, and what is written follows the umask."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import call, questions, training
from helpers.faults import fault
from hrp.cli.locks import INSIDE, held, lock_beside


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
    task = ("--task", "seq2seq") if command == "finetune" else ()
    return (*training(made / "rows.jsonl", output), *task)


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


@fault("Two at once", "the lock of a dead process", command="the same", outcome="taken over")
@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_the_output_of_a_dead_run_is_taken_over(made, tmp_path, command):
    output = tmp_path / "out"
    place = output / INSIDE if command == "sft" else lock_beside(output)
    script = (
        "import sys, pathlib, time; from hrp.cli.locks import held\n"
        "with held(pathlib.Path(sys.argv[1]), 'hrp sft', pathlib.Path(sys.argv[2])):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, place, output], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    assert call(command, *training(made / "rows.jsonl", output)) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert call(command, *training(made / "rows.jsonl", output)) == 0
    assert not place.exists()


def test_everything_that_is_written_follows_the_umask(made):
    modes = {
        path: stat.S_IMODE(path.stat().st_mode)
        for name in ("spectrum", "adapter", "start")
        for path in (made / name, *(made / name).rglob("*"))
    }
    assert len(modes) > 30
    assert all(mode == (0o775 if path.is_dir() else 0o664) for path, mode in modes.items()), modes
