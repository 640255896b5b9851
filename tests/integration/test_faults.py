"""A fault in the middle leaves the model as it was and nothing half-written behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer

import hrp
from helpers.launching import launch
from helpers.tiny import assert_identical, fingerprint, loader
from helpers.trainer_arguments import trainer_arguments

CONFIG = hrp.HRPConfig(preheat_rank=16, preheat_steps=4, learning_rate=1e-2)


class OutOfMemory(Trainer):
    """Runs out of memory in the third step."""

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().compute_loss(*args, **kwargs)


def out_of_memory(model, batch):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("way", ["dataloader", "trainer"])
def test_out_of_memory_restores_the_model_and_says_what_to_lower(model, way, tmp_path):
    data = (
        {"dataloader": loader(), "loss_fn": out_of_memory}
        if way == "dataloader"
        else {"trainer_cls": OutOfMemory, **trainer_arguments(tmp_path)}
    )
    before, structure = fingerprint(model), str(model)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"Tried to allocate") as caught:
        hrp.preheat(model, CONFIG, **data)
    assert "`preheat_rank` (16)" in "".join(caught.value.__notes__)
    assert_identical(before, fingerprint(model))
    assert str(model) == structure
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_worker_that_dies_ends_the_others_and_leaves_no_spectrum(tmp_path: Path):
    with pytest.raises(AssertionError, match=r"SIGKILL|-9"):
        launch("dying", tmp_path)
    assert list(tmp_path.iterdir()) == []
