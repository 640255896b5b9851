"""A run that is killed (SIGKILL) at any moment resumes to the same spectrum, and never lies.

`tests/integration/test_kills.py` kills all commands at every rename.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import hrp
from helpers import killing
from helpers.commands import assert_same_spectrum, call, questions, training
from helpers.faults import fault
from hrp.demo import load_base

STEPS = ("--preheat_steps", "9", "--max_steps", "6")


def finish(command: str, flags: list[str]) -> float:
    """Run to the end in a process of its own; returns the seconds that it took."""
    began = time.monotonic()
    ended = killing.run(call, command, *flags, place=output_of(flags))
    assert ended.status == 0, ended.said
    return time.monotonic() - began


def output_of(flags: list[str]) -> Path:
    return Path(flags[flags.index("--output_dir") + 1])


def kill_after(command: str, flags: list[str], seconds: float) -> None:
    process = killing.start(call, command, *flags, place=output_of(flags))
    process.join(seconds)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode in (0, -signal.SIGKILL)


def spectrum_folder(command: str, output: Path) -> Path:
    return output if command == "preheat" else output / "spectrum"


def assert_whole(command: str, output: Path, expected) -> None:
    """Whatever loads is the finished thing."""
    folder = spectrum_folder(command, output)
    if folder.exists():
        assert_same_spectrum(hrp.Spectrum.load(folder), expected)
    if command == "sft" and (output / "adapter_config.json").exists():
        base, _ = load_base()
        PeftModel.from_pretrained(base, output)


def check(command: str, tmp_path: Path, kills: int, seed: int) -> None:
    """Kill ``kills`` runs, each at a random moment of an undisturbed run's time, resuming each."""
    data = questions(tmp_path)
    undisturbed = tmp_path / "undisturbed"
    duration = finish(command, training(data, undisturbed, *STEPS))
    expected = hrp.Spectrum.load(spectrum_folder(command, undisturbed))
    moments = random.Random(seed)
    for attempt in range(kills):
        output = tmp_path / f"killed{attempt}"
        flags = training(data, output, *STEPS, "--resume")
        kill_after(command, flags, moments.uniform(0, 1) * duration)
        assert_whole(command, output, expected)
        finish(command, flags)
        assert_same_spectrum(hrp.Spectrum.load(spectrum_folder(command, output)), expected)
        if command == "sft":
            assert_same_adapter(output, undisturbed)
        assert not list(output.glob(".*"))
        assert not list(output.glob("_*"))
    assert not list(tmp_path.glob(".*"))  # no work in progress is left


def assert_same_adapter(one: Path, two: Path) -> None:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_spectrum(tmp_path):
    check("sft", tmp_path, kills=1, seed=0)


@fault(
    "Whose file is it",
    "a folder `.NAME.mybackup` beside the output; a name with `[1]` or `*`",
    command="preheat",
    outcome="kept",
)
@pytest.mark.parametrize(
    "name", [".killed.a1b2c3d4", ".killed.preheating", ".killed.mybackup", ".hrp-a1b2c3d4"]
)
@pytest.mark.parametrize("output", ["killed", "killed[1]", "*"])
def test_a_neighbour_that_a_run_has_not_made_is_kept(name, output, tmp_path):
    neighbours = [tmp_path / name, tmp_path / f".{output}.mybackup", tmp_path / "killed1"]
    for neighbour in neighbours:
        neighbour.mkdir(exist_ok=True)
        (neighbour / "spectrum.safetensors").write_bytes(b"mine")
    flags = training(questions(tmp_path), tmp_path / output, "--overwrite")
    assert call("preheat", *flags) == 0
    assert all((path / "spectrum.safetensors").read_bytes() == b"mine" for path in neighbours)
    assert hrp.Spectrum.load(tmp_path / output).provenance["steps"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("command", ["preheat", "sft"])
@pytest.mark.parametrize("seed", [1, 2])
def test_ten_runs_killed_at_random_moments_resume_to_the_same_spectrum(command, tmp_path, seed):
    check(command, tmp_path, kills=10, seed=seed)
