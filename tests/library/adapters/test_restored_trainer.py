"""What a trainer and a dataloader hold is put back, whatever it is."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader

from helpers.tiny import collate, token_rows
from hrp.adapters.restoring import restored_attributes, restored_loader


def test_buffers_of_metrics_are_put_back_and_count_on_within():
    buffers = {"train": defaultdict(list, loss=[1.0]), "eval": defaultdict(list)}
    holder = SimpleNamespace(metrics=buffers, seen=deque([1], maxlen=2), names={"a"}, rows=[[1]])
    with restored_attributes(holder):
        holder.metrics["train"]["loss"].append(2.0)
        holder.metrics["eval"]["new"].append(3.0)
        holder.seen.append(2)
        holder.names.add("b")
        holder.rows[0].append(2)
        holder.added = 1
        del holder.names
    assert holder.metrics is buffers
    assert buffers == {"train": {"loss": [1.0]}, "eval": {}}
    assert vars(holder) == {
        "metrics": buffers, "seen": deque([1]), "names": {"a"}, "rows": [[1]]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator().manual_seed(1), lambda g: torch.rand(1, generator=g).item()),
        (np.random.default_rng(1), lambda g: g.random()),
        (np.random.RandomState(1), lambda g: g.random()),
        (random.Random(1), lambda g: g.random()),
    ],
    ids=["torch", "numpy", "numpy's old", "Python's"],
)
def test_a_generator_goes_on_where_it_was(generator, draw):
    holder = SimpleNamespace(generator=generator)
    with restored_attributes(holder):
        first = draw(generator)
    assert draw(generator) == first


def test_a_prepared_loader_gives_the_epochs_that_it_would_have_given():
    def prepared():
        torch.manual_seed(3)
        loader = DataLoader(token_rows(), batch_size=8, shuffle=True, collate_fn=collate)
        accelerator = Accelerator(
            cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True)
        )
        return accelerator.prepare_data_loader(loader)

    def epoch(loader):
        return [batch["input_ids"].tolist() for batch in loader]

    untouched, loader = prepared(), prepared()
    with restored_loader(loader):
        within = [epoch(loader) for _ in range(2)]
        next(iter(loader))
    expected = [epoch(untouched) for _ in range(2)]
    assert expected[0] != expected[1]
    assert within == expected == [epoch(loader) for _ in range(2)]
