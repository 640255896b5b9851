"""Batches in pieces give what whole batches give."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, DataCollatorForSeq2Seq

import hrp
from bench.tiny_bench import tiny_task
from conftest import tiny_llama
from hrp.bench.pieces import PieceCollator, PieceTrainer, splits
from hrp.bench.tasks import Task
from hrp.bench.training import Plan, fine_tune, trainer_arguments
from hrp.demo.base_model import load_base

STEPS = 4


@pytest.fixture(scope="module")
def ragged() -> Task:
    """Rows of 3 to 24 tokens, 23 of them: the last of batches of 8 is short."""
    draw = random.Random(0)
    rows = []
    for _ in range(23):
        ids = [draw.randrange(2, 16) for _ in range(draw.randint(3, 24))]
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    tokenizer = load_base()[1]
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    return dataclasses.replace(tiny_task(), train=rows, collator=collator, tokenizer=tokenizer)


def adapter():
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules="all-linear"))


def plan(task: Task, micro_batch_size: int | None) -> Plan:
    return Plan(task, STEPS, 1e-2, seed=0, batch_size=8, training={"logging_steps": 1},
                micro_batch_size=micro_batch_size)  # fmt: skip


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_pieces_train_as_whole_batches_do(ragged, size):
    whole, split = adapter(), adapter()
    expected = fine_tune(whole, plan(ragged, None))
    found = fine_tune(split, plan(ragged, size))
    assert found.tokens == expected.tokens
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-4, atol=1e-4)
    for one, other in zip(split.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_pieces_preheat_as_whole_batches_do(ragged):
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=STEPS, learning_rate=1e-2)
    spectra = []
    for size in (None, 3):
        told = plan(ragged, size)
        with trainer_arguments(told) as (kwargs, _):
            spectra.append(hrp.preheat(adapter(), config, trainer_cls=told.trainer_cls, **kwargs))
    for name, module in spectra[0].items():
        torch.testing.assert_close(spectra[1][name].S, module.S, rtol=1e-3, atol=1e-5)


def test_pieces_hold_every_token_and_little_padding(ragged):
    rows = ragged.train[:8]
    batch = PieceCollator(ragged.collator, 3)(list(rows))
    parts = [batch["labels"][begin:end, :length] for begin, end, length in batch["pieces"]]
    kept = sum(int((part != -100).sum()) for part in parts)
    assert kept == sum(len(row["labels"]) - 1 for row in rows)
    assert sum(part.numel() for part in parts) < batch["labels"].numel()


def test_only_causal_tasks_padded_on_the_right_are_split(ragged):
    left = load_base()[1]
    left.padding_side = "left"
    assert splits(ragged, 3)
    assert not splits(ragged, None)
    assert not splits(dataclasses.replace(ragged, task_type="SEQ_CLS"), 3)
    assert not splits(dataclasses.replace(ragged, tokenizer=left), 3)


def test_a_loss_that_is_a_mean_of_the_batch_is_refused(tmp_path):
    tiny = BertForSequenceClassification(
        BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                   intermediate_size=8)
    )  # fmt: skip
    trainer = PieceTrainer(model=tiny)
    with pytest.raises(ValueError, match="`micro_batch_size` needs a model whose loss is norm"):
        trainer.training_step(tiny, {"pieces": [(0, 1, 1)]}, None)
