"""Batches without labels are passed over, unless there are no others."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer

import hrp
from helpers.faults import fault
from helpers.tiny import assert_identical, collate, fingerprint, token_rows
from helpers.trainer_arguments import trainer_arguments

CONFIG = hrp.HRPConfig(preheat_rank=16, preheat_steps=4, learning_rate=1e-2)


class InOrder(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def rows_without(labelless: range) -> list[dict[str, torch.Tensor]]:
    rows = token_rows(32)
    for number in labelless:
        rows[number]["labels"] = torch.full_like(rows[number]["labels"], -100)
    return rows


def preheat(model, way, folder, rows, accumulation=1, config=CONFIG):
    if way == "dataloader":
        size = 8
        batches = [collate(rows[start : start + size]) for start in range(0, len(rows), size)]
        return hrp.preheat(model, config, dataloader=batches)
    data = trainer_arguments(folder, gradient_accumulation_steps=accumulation, max_steps=9)
    data["args"].per_device_train_batch_size = 8 // accumulation
    data["train_dataset"] = rows
    if way == "trainer":
        return hrp.preheat(model, config, trainer_cls=InOrder, **data)
    return hrp.preheat(InOrder(model=model, **data), config)


@fault(
    "Training", "a batch whose labels are all -100", command="`hrp.preheat`", outcome="passed over"
)
@pytest.mark.parametrize("way", ["dataloader", "trainer", "built trainer"])
@pytest.mark.parametrize("first", [0, 8, 24])
def test_a_batch_without_labels_is_passed_over(model, tmp_path, way, first):
    spectrum = preheat(model, way, tmp_path, rows_without(range(first, first + 8)))
    losses = spectrum.provenance["losses"]
    assert len(losses) == 4
    assert all(math.isfinite(loss) and loss > 1 for loss in losses)
    assert len(spectrum) == 14


@pytest.mark.parametrize("way", ["trainer", "built trainer"])
def test_a_batch_without_labels_among_accumulated_ones_leaves_the_others_loss(model, tmp_path, way):
    spectrum = preheat(model, way, tmp_path, rows_without(range(4, 8)), accumulation=2)
    assert all(math.isfinite(loss) and loss > 1 for loss in spectrum.provenance["losses"])


@fault("Training", "no label in any batch", command="`hrp.preheat`", outcome="refused")
@pytest.mark.parametrize("way", ["dataloader", "trainer", "built trainer"])
@pytest.mark.parametrize("steps", [3, 7])
def test_data_without_any_label_are_refused(model, tmp_path, way, steps):
    before = fingerprint(model)
    config = hrp.HRPConfig(preheat_rank=16, preheat_steps=steps, learning_rate=1e-2)
    with pytest.raises(hrp.PreheatingError, match=f"no batch had a label .* in {steps} steps"):
        preheat(model, way, tmp_path, rows_without(range(32)), config=config)
    assert_identical(before, fingerprint(model))
