"""A run that is killed (SIGKILL) at any moment resumes to the same spectrum, and never lies.

The runs are forked from a server that has everything imported, so that a run takes a second and
the kills hit it and not its imports.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import hrp
from helpers.commands import assert_same_spectrum, call, questions, training
from helpers.faults import fault
from hrp.demo import load_base
from hrp.files import settle
from hrp.spectra.artefact import FILES, PROVENANCE_FILE, TENSORS_FILE

Moments = Callable[[int], Iterable[int]]
STEPS = ("--preheat_steps", "9", "--max_steps", "6")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["hrp.cli.preheat", "hrp.cli.sft", "transformers.models.llama"])


def _child(command: str, flags: list[str], moment: int | None, counted: Path | None) -> None:
    """Run a command, killed before (even moments) or after (odd) its n-th rename."""
    torch.set_num_threads(1)
    place = os.path.dirname(flags[flags.index("--output_dir") + 1])
    passed = itertools.count()

    def pass_moment(target) -> None:  # renames in the cache of `datasets` do not count
        if str(target).startswith(place) and next(passed) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(rename):
        def renamed(source, target, **settings):
            pass_moment(target)
            rename(source, target, **settings)
            pass_moment(target)

        return renamed

    for name in ("rename", "replace"):
        setattr(os, name, watched(getattr(os, name)))
    log = os.open(os.path.join(place, "log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = call(command, *flags)
    if counted is not None:
        counted.write_text(str(next(passed)))
    os._exit(status)


def start(
    command: str, flags: list[str], moment: int | None = None, counted: Path | None = None
) -> BaseProcess:
    process = FORKS.Process(target=_child, args=(command, flags, moment, counted))
    process.start()
    return process


def finish(command: str, flags: list[str]) -> float:
    """Run to the end in a process of its own; returns the seconds that it took."""
    began = time.monotonic()
    process = start(command, flags)
    process.join(120)
    log = Path(flags[flags.index("--output_dir") + 1]).with_name("log")
    assert process.exitcode == 0, log.read_text()
    return time.monotonic() - began


def kill_after(command: str, flags: list[str], seconds: float) -> None:
    process = start(command, flags)
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


def check_renames(command: str, tmp_path: Path, moments: Moments) -> None:
    """Kill runs around their renames, at those of ``moments`` of them all, and resume each."""
    data, undisturbed, counted = questions(tmp_path), tmp_path / "undisturbed", tmp_path / "count"
    start(command, training(data, undisturbed, *STEPS), None, counted).join()
    expected = hrp.Spectrum.load(spectrum_folder(command, undisturbed))
    for moment in moments(int(counted.read_text())):
        output = tmp_path / f"killed{moment}"
        theirs = beside(output)
        process = start(command, training(data, output, *STEPS), moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
        assert_whole(command, output, expected)
        finish(command, training(data, output, *STEPS, "--resume"))
        assert_same_spectrum(hrp.Spectrum.load(spectrum_folder(command, output)), expected)
        if command == "sft":
            assert_same_adapter(output, undisturbed)
        assert all(path.read_text() == "mine" for path in theirs)
        assert_no_work_left(command, output)


def check_overwriting(
    command: str, tmp_path: Path, moments: Callable[[int], Iterable[int]]
) -> None:
    """The same, of runs that overwrite a finished output; what loads is the old or the new."""
    data, counted, old = questions(tmp_path), tmp_path / "count", tmp_path / "old"
    finish(command, training(data, old, *STEPS))
    before = hrp.Spectrum.load(spectrum_folder(command, old))
    again = (*STEPS, "--overwrite", "--seed", "7")
    shutil.copytree(old, tmp_path / "new")
    start(command, training(data, tmp_path / "new", *again), None, counted).join()
    expected = hrp.Spectrum.load(spectrum_folder(command, tmp_path / "new"))
    for moment in moments(int(counted.read_text())):
        output = tmp_path / f"over{moment}"
        shutil.copytree(old, output)
        process = start(command, training(data, output, *again), moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL, moment
        settle(spectrum_folder(command, output))
        if spectrum_folder(command, output).exists():
            spectrum = hrp.Spectrum.load(spectrum_folder(command, output))
            whole = before if spectrum.provenance["seed"] == 42 else expected
            assert_same_spectrum(spectrum, whole)
        else:
            assert command == "sft"
        finish(command, training(data, output, *again))
        assert_same_spectrum(hrp.Spectrum.load(spectrum_folder(command, output)), expected)
        assert_no_work_left(command, output)


def beside(output: Path) -> list[Path]:
    """Files of the user, beside the output."""
    paths = [output.with_name(f".{output.name}{end}") for end in (".12345678", ".old.12345678")]
    for path in paths:
        path.mkdir()
        (path / "thesis").write_text("mine")
    return [path / "thesis" for path in paths]


def assert_no_work_left(command: str, output: Path) -> None:
    hidden = [path.name for path in output.rglob(".*")]
    hidden += [path.name for path in output.parent.glob(".hrp-*")]
    hidden += [path.name for path in output.parent.glob(f".{output.name}*/hrp*")]
    assert hidden == []
    assert not list(output.glob("hrp-preheating"))
    assert not list(output.glob("_hrp-lock"))
    if command == "preheat":
        written = {path.name for path in output.iterdir()}
        assert {TENSORS_FILE, PROVENANCE_FILE} <= written <= set(FILES)


def assert_same_adapter(one: Path, two: Path) -> None:
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_spectrum(tmp_path):
    check("sft", tmp_path, kills=1, seed=0)


@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_a_run_killed_around_a_rename_resumes_to_the_same_result(command, tmp_path):
    check_renames(command, tmp_path, lambda count: (count // 2, count - 2))


@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_a_run_killed_while_it_overwrites_leaves_the_old_or_the_new(command, tmp_path):
    check_overwriting(command, tmp_path, lambda count: (count - 3,))


@fault(
    "Kills and interrupts",
    "killed before or after any rename",
    command="sft, preheat",
    outcome="`--resume` gives the same spectrum and adapter, bit for bit on the CPU",
)
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", ["sft", "preheat"])
@pytest.mark.parametrize("checked", [check_renames, check_overwriting])
def test_runs_killed_around_every_rename_resume_to_the_same_result(command, checked, tmp_path):
    checked(command, tmp_path, range)


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
