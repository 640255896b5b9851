"""Several processes give the spectrum of a single one, and the same start on every rank.

On the CPU (gloo) by default; the tests marked gpu do the same on GPUs (NCCL).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import hrp
from helpers.faults import fault
from helpers.launching import launch
from helpers.tiny import tiny_llama, with_lora
from helpers.two_processes import preheated

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


ON_GPUS = {"ACCELERATE_USE_CPU": "false"}


def zero(stage: int) -> dict[str, str]:
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
        "ACCELERATE_USE_CPU": "false",  # Accelerate has DeepSpeed for GPUs only
    }


def saved(folder: Path, name: str, processes: int = 2) -> list:
    paths = [folder / f"{name}-{rank}.pt" for rank in range(processes)]
    return [torch.load(path, map_location="cpu") for path in paths]


def assert_same_subspaces(expected: hrp.Spectrum, actual: hrp.Spectrum) -> None:
    for side in ("U", "Vh"):
        for name, cosines in expected.subspace_alignment(actual, 4, side).items():
            assert cosines.min() > 0.9999, name
    for name, module in expected.items():  # and so does the cut in the metric of the loss
        one, two = (
            lora_B @ lora_A for lora_B, lora_A in (module.truncate(2), actual[name].truncate(2))
        )
        assert module.has_metric
        assert float((one - two).norm() / one.norm()) < 1e-3, name


@pytest.fixture(scope="module")
def ddp_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    launch("ddp", folder)
    return folder


@pytest.fixture(scope="module")
def fsdp_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    launch("fsdp", folder, **FSDP2)
    return folder


def test_ddp_gives_the_spectrum_of_one_process_on_the_same_global_batches(ddp_folder):
    parallel = hrp.Spectrum.load(ddp_folder / "spectrum")
    single = preheated(with_lora(tiny_llama()), processes=1)
    assert_same_subspaces(single, parallel)
    assert parallel.provenance["losses"] == pytest.approx(single.provenance["losses"], rel=1e-4)


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


@fault("Training", "`torchrun` on CPUs", command="`hrp.preheat`", outcome="all train together")
def test_processes_on_cpus_train_together_and_stop_at_the_first_one_s_word(tmp_path):
    launch("at_once", tmp_path)
    first, second = saved(tmp_path, "state")
    assert first["steps"] == second["steps"] == 4
    for name, U in first["U"].items():
        assert torch.equal(U, second["U"][name]), name


@fault(
    "Training",
    "processes that would each train alone",
    command="`hrp.preheat`",
    outcome="refused with the remedy",
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs they are together by themselves")
@pytest.mark.slow
def test_processes_that_would_each_train_alone_are_told_so(tmp_path):
    launch("at_once", tmp_path, ACCELERATE_USE_CPU="false")
    for state in saved(tmp_path, "state"):
        assert "2 processes were launched, and Accelerate would let each" in state["error"]


def test_fsdp2_gives_the_spectrum_of_one_process_on_the_same_global_batches(fsdp_folder):
    parallel = hrp.Spectrum.load(fsdp_folder / "spectrum")
    single = preheated(with_lora(tiny_llama()), processes=1)
    assert_same_subspaces(single, parallel)
    assert parallel.provenance["losses"] == pytest.approx(single.provenance["losses"], rel=1e-4)


def test_fsdp2_shards_the_model_and_gives_every_rank_the_same_spectrum(fsdp_folder):
    first, second = saved(fsdp_folder, "state")
    assert first["sharded"]
    for name, U in first["U"].items():
        assert torch.equal(U, second["U"][name]), name


def test_the_trainer_preheats_under_fsdp2_as_under_ddp(fsdp_folder, ddp_folder):
    sharded = hrp.Spectrum.load(fsdp_folder / "by_trainer")
    assert_same_subspaces(hrp.Spectrum.load(ddp_folder / "by_trainer"), sharded)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_gives_the_spectrum_of_one_process_and_the_trainer_s_under_ddp(
    stage, tmp_path, ddp_folder
):
    launch("zero", tmp_path, **zero(stage), DS_ACCELERATOR="cpu")
    assert_zero_agrees(stage, tmp_path)
    trainers = [hrp.Spectrum.load(folder / "by_trainer") for folder in (ddp_folder, tmp_path)]
    assert_same_subspaces(*trainers)


def assert_zero_agrees(stage: int, folder: Path, processes: int = 2) -> None:
    states = saved(folder, "state", processes)
    for state in states:
        assert state["stages"] == [stage]
        assert state["sharded"] == (stage == 3)
        for name, U in states[0]["U"].items():
            assert torch.equal(U, state["U"][name]), name
    single = preheated(with_lora(tiny_llama()), processes=1)
    assert_same_subspaces(single, hrp.Spectrum.load(folder / "spectrum"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_spectrum_of_one_cpu_process_under_ddp(tmp_path):
    launch("ddp", tmp_path, **ON_GPUS)
    single = preheated(with_lora(tiny_llama()), processes=1)
    assert_same_subspaces(single, hrp.Spectrum.load(tmp_path / "spectrum"))
    first, second = saved(tmp_path, "state")
    assert first["restored"]
    assert second["restored"]
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
    for message in saved(tmp_path, "error"):
        assert "the loss is nan at preheating step 1" in message


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_spectrum_of_one_cpu_process_under_fsdp2(tmp_path):
    launch("fsdp", tmp_path, **FSDP2 | ON_GPUS)
    single = preheated(with_lora(tiny_llama()), processes=1)
    assert_same_subspaces(single, hrp.Spectrum.load(tmp_path / "spectrum"))
    assert all(state["sharded"] for state in saved(tmp_path, "state"))


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_zero_on_gpus_gives_the_spectrum_of_one_cpu_process(stage, processes, tmp_path):
    if torch.cuda.device_count() < processes:
        pytest.skip(f"needs {processes} GPU(s)")
    launch("zero", tmp_path, processes, **zero(stage))
    assert_zero_agrees(stage, tmp_path, processes)


@pytest.mark.parametrize("engine", ["FSDP", "DeepSpeed"])
def test_an_engine_that_shards_is_refused_before_training_unless_the_model_may_be_spent(
    engine, monkeypatch
):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine.upper()}", "true")
    model = with_lora(tiny_llama())
    with pytest.raises(ValueError, match=f"{engine}.*two launches.*spend_model=True"):
        hrp.preheat(model, hrp.HRPConfig(8, 2), dataloader=[{}])


def test_fsdp1_is_refused_as_its_flat_parameters_hide_the_factors(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    model = with_lora(tiny_llama())
    with pytest.raises(ValueError, match="needs version 2, got version 1; set `fsdp_version: 2`"):
        hrp.preheat(model, hrp.HRPConfig(8, 2), dataloader=[{}], spend_model=True)
