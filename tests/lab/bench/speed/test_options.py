"""The switches of speed reach the trainer, and none of them is on unless asked for."""

from __future__ import annotations

import pytest
from transformers import Trainer

from helpers.tiny_bench import ragged_task
from hrp_lab.bench import driver
from hrp_lab.bench.speed.cuda_graphs import GraphedTrainer
from hrp_lab.bench.speed.options import Speed
from hrp_lab.bench.speed.padding_free import padding_free_batch
from hrp_lab.cli.bench_commands import main

EXPERIMENT = """
experiment: few
tasks: [wordproblems]
model: embedded
arms: [lora]
steps: 1
learning_rates: [1.0e-2]
"""


def test_without_switches_the_trainer_and_the_collator_are_as_they_are():
    task = ragged_task()
    assert Speed().trainer_cls is Trainer
    assert Speed().collator(task) is task.collator


def test_graphs_get_batches_of_few_shapes_with_and_without_padding():
    task = ragged_task()
    assert Speed(cuda_graphs=True).trainer_cls is GraphedTrainer
    assert Speed(cuda_graphs=True).collator(task).pad_to_multiple_of == 32
    packed = Speed(padding_free=True, cuda_graphs=True).collator(task)
    assert packed.func is padding_free_batch
    assert packed(task.train[:8])["input_ids"].shape[1] % 512 == 0


@pytest.mark.parametrize("switch", ["padding_free", "torch_compile"])
def test_a_switch_of_the_command_line_is_the_one_that_is_on(tmp_path, monkeypatch, switch):
    given = []

    def refuse(experiment, places, *_):
        given.append(places.speed)
        raise ValueError("nothing is run")

    monkeypatch.setattr(driver, "Driver", refuse)
    (tmp_path / "few.yaml").write_text(EXPERIMENT)
    assert main(["run", str(tmp_path / "few.yaml"), f"--{switch}"]) == 2
    assert given == [Speed(**{switch: True})]
