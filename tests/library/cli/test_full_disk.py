"""A run that may not write any more says so in one line, leaves no half, and goes on later.

A limit on the size of files, which the process sets itself, stands for a full disk: every writer
(Python, torch, safetensors) meets it in its own way.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import hrp
from helpers.commands import assert_same_spectrum, call, questions, training
from helpers.faults import fault
from hrp.demo import load_base

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["hrp.cli.preheat", "hrp.cli.sft", "transformers.models.llama"])


def _child(command: str, flags: list[str], limit: int, errors: Path) -> None:
    torch.set_num_threads(1)
    handle = os.open(errors, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    os._exit(call(command, *flags))


def limited(command: str, flags: list[str], limit: int, errors: Path) -> tuple[int | None, str]:
    """Exit status and output of a run whose files may not be larger than ``limit`` bytes."""
    process = FORKS.Process(target=_child, args=(command, flags, limit, errors))
    process.start()
    process.join()
    return process.exitcode, errors.read_text(errors="replace")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return questions(tmp_path_factory.mktemp("disk"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed") / "adapter"
    assert call("sft", *training(data, output)) == 0
    return hrp.Spectrum.load(output / "spectrum")


# The adapter has 160 kB, preheating's adapter 320 kB, its optimizer's state 640 kB.
@fault(
    "Kills and interrupts",
    "the disk is full",
    command="sft, preheat, init",
    outcome="one line with the remedy; `--resume` goes on",
)
@pytest.mark.parametrize("limit", [100_000, 200_000, 400_000])
def test_a_run_out_of_disk_says_so_in_one_line_and_resumes(data, undisturbed, tmp_path, limit):
    output = tmp_path / "adapter"
    status, text = limited("sft", training(data, output), limit, tmp_path / "errors")
    assert status == 2, text
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("hrp sft: ")]
    assert "run the command again" in line
    assert "make room on the disk" in line or "raise the limit on the size of files" in line
    assert not (output / "adapter_config.json").exists()
    assert not (output / "spectrum").exists()
    assert call("sft", *training(data, output, "--resume")) == 0
    assert_same_spectrum(hrp.Spectrum.load(output / "spectrum"), undisturbed)
    base, _ = load_base()
    PeftModel.from_pretrained(base, output)
