"""Two processes on the CPU (gloo): the same spectrum as one, the same start on every rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from two_processes import preheated

import hrp
from conftest import tiny_llama, with_lora

SCRIPT = Path(__file__).with_name("two_processes.py")


def launch(folder: Path) -> None:
    """Start two processes by torchrun; fails the test with their output if they fail."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    environment = os.environ | {
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def saved(folder: Path, name: str) -> list:
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def ddp_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    launch(folder)
    return folder


def test_ddp_gives_the_spectrum_of_one_process_on_the_same_global_batches(ddp_folder):
    two = hrp.Spectrum.load(ddp_folder / "spectrum")
    one = preheated(with_lora(tiny_llama()), processes=1)
    for side in ("U", "Vh"):
        for name, cosines in one.subspace_alignment(two, 4, side).items():
            assert cosines.min() > 0.9999, name
    assert two.provenance["losses"] == pytest.approx(one.provenance["losses"], rel=1e-4)


def test_every_rank_is_restored_and_starts_the_same(ddp_folder):
    first, second = saved(ddp_folder, "state")
    assert first["restored"]
    assert second["restored"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_the_trainer_preheats_under_ddp(ddp_folder):
    spectrum = hrp.Spectrum.load(ddp_folder / "by_trainer")
    assert spectrum.provenance["steps"] == 4
    assert len(spectrum) == 14


def test_nan_in_one_rank_stops_all_with_a_clear_message(ddp_folder):
    for message in saved(ddp_folder, "error"):
        assert "the loss is nan at preheating step 1" in message


@pytest.mark.parametrize("engine", ["FSDP", "DeepSpeed"])
def test_an_engine_that_holds_the_parameters_is_refused_before_training(engine, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")
    model = with_lora(tiny_llama())
    with pytest.raises(ValueError, match=f"{engine}.*first launch.*without {engine}"):
        hrp.preheat(model, hrp.HRPConfig(8, 2), dataloader=[{}])
