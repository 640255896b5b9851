"""Replayed steps are the steps that they replay."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, DataCollatorWithPadding

import hrp
from helpers.tiny import tiny_llama
from helpers.tiny_bench import ragged_task
from hrp.demo import load_base
from hrp_lab.bench.speed.cuda_graphs import with_few_shapes
from hrp_lab.bench.speed.options import Speed
from hrp_lab.bench.tasks import Task
from hrp_lab.bench.training import Plan, fine_tune, trainer_arguments
from hrp_lab.cli.bench_commands import main

STEPS = 12
needs_one_gpu = pytest.mark.skipif(
    torch.cuda.device_count() != 1, reason="needs CUDA_VISIBLE_DEVICES to name one GPU"
)


@pytest.fixture(scope="module")
def ragged() -> Task:
    return ragged_task()


def adapter(device: str):
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear")).to(device)


def plan(task: Task, **speed) -> Plan:
    training = {"logging_steps": 1}
    return Plan(task, STEPS, 1e-2, seed=0, batch_size=8, training=training, speed=Speed(**speed))


@pytest.mark.gpu
@needs_one_gpu
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_replayed_run_is_the_run_without_graphs(ragged, packed):
    eager, replayed = adapter("cuda"), adapter("cuda")
    expected = fine_tune(eager, plan(ragged, padding_free=packed))
    trained = fine_tune(replayed, plan(ragged, padding_free=packed, cuda_graphs=True))
    assert trained.tokens == expected.tokens
    torch.testing.assert_close(trained.losses, expected.losses, rtol=1e-2, atol=1e-2)
    assert trained.losses[-1][1] < trained.losses[0][1]


@pytest.mark.gpu
@needs_one_gpu
def test_replayed_preheating_gives_the_same_spectrum(ragged):
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=STEPS, learning_rate=1e-2)
    spectra = []
    for graphs in (False, True):
        told, model = plan(ragged, padding_free=True, cuda_graphs=graphs), adapter("cuda")
        with trainer_arguments(told) as (kwargs, _), told.speed.applied(model, ragged):
            cls = told.speed.trainer_cls
            spectra.append(hrp.preheat(model, config, trainer_cls=cls, **kwargs))
    for name, module in spectra[0].items():
        torch.testing.assert_close(spectra[1][name].S[:2], module.S[:2], rtol=0.05, atol=1e-3)


@pytest.mark.gpu
@needs_one_gpu
def test_accumulated_gradients_are_refused(ragged):
    accumulated = {"gradient_accumulation_steps": 2}
    told = dataclasses.replace(plan(ragged, cuda_graphs=True), training=accumulated)
    with pytest.raises(ValueError, match="`gradient_accumulation_steps` 1, got 1 GPUs and 2"):
        fine_tune(adapter("cuda"), told)


def test_padding_collators_leave_few_shapes_and_others_stay():
    tokenizer = load_base()[1]
    for collator in (DataCollatorForSeq2Seq(tokenizer), DataCollatorWithPadding(tokenizer)):
        assert with_few_shapes(collator).pad_to_multiple_of == 32
        assert collator.pad_to_multiple_of is None
    assert with_few_shapes(list) is list


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_graphs_are_refused_at_once(tmp_path, capsys):
    assert main(["run", str(tmp_path / "absent.yaml"), "--cuda_graphs"]) == 2
    assert "`--cuda_graphs` needs an NVIDIA GPU" in capsys.readouterr().err
