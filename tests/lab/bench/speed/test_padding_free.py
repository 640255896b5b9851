"""Batches without padding give what padded batches give."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
)

import hrp
from helpers.tiny import tiny_llama
from helpers.tiny_bench import ragged_task
from hrp_lab.bench.speed.options import Speed
from hrp_lab.bench.speed.padding_free import padding_free, padding_free_batch
from hrp_lab.bench.tasks import Task
from hrp_lab.bench.training import Plan, fine_tune, trainer_arguments

STEPS = 4
TINY = {
    "vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def ragged() -> Task:
    return ragged_task()


def adapter(make=tiny_llama):
    torch.manual_seed(0)
    return get_peft_model(make(), LoraConfig(r=2, target_modules="all-linear"))


def plan(task: Task, without_padding: bool) -> Plan:
    return Plan(task, STEPS, 1e-2, seed=0, batch_size=8, training={"logging_steps": 1},
                speed=Speed(padding_free=without_padding))  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        tiny_llama,
        lambda: Qwen3ForCausalLM(Qwen3Config(**TINY)),
        lambda: MistralForCausalLM(MistralConfig(**TINY, sliding_window=None)),
    ],
    ids=["llama", "qwen3", "mistral"],
)
def test_without_padding_a_model_trains_as_with_it(ragged, make):
    padded, packed = adapter(make), adapter(make)
    expected = fine_tune(padded, plan(ragged, False))
    trained = fine_tune(packed, plan(ragged, True))
    assert trained.tokens == expected.tokens
    torch.testing.assert_close(trained.losses, expected.losses, rtol=1e-4, atol=1e-4)
    for weight, expected_weight in zip(packed.parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(weight, expected_weight, rtol=1e-3, atol=1e-5)


def test_without_padding_preheating_gives_the_same_spectrum(ragged):
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=STEPS, learning_rate=1e-2)
    spectra = []
    for without_padding in (False, True):
        told, model = plan(ragged, without_padding), adapter()
        with trainer_arguments(told) as (kwargs, _), told.speed.applied(model, ragged):
            spectra.append(hrp.preheat(model, config, trainer_cls=Trainer, **kwargs))
    for name, module in spectra[0].items():
        torch.testing.assert_close(spectra[1][name].S, module.S, rtol=1e-3, atol=1e-5)


def test_a_row_without_padding_sees_no_other_row(ragged):
    model, rows = tiny_llama().eval(), [dict(row) for row in ragged.train[:3]]
    first = len(rows[0]["input_ids"])

    def logits() -> torch.Tensor:
        with torch.no_grad(), padding_free(model):
            return model(**padding_free_batch(rows)).logits[0]

    before = logits()
    rows[1]["input_ids"] = rows[1]["input_ids"][::-1]
    after = logits()
    assert torch.equal(before[:first], after[:first])
    assert torch.equal(before[first + len(rows[1]["input_ids"]) :],
                       after[first + len(rows[1]["input_ids"]) :])  # fmt: skip
    assert not torch.allclose(before, after)


def test_filling_a_batch_up_changes_no_gradient(ragged):
    gradients = []
    for multiples in ((), (64, 16)):
        model, batch = tiny_llama(), padding_free_batch(ragged.train[:8], *multiples)
        with padding_free(model):
            model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert batch["input_ids"].shape[1] % 64 == 0
    assert batch["longest"] % 16 == 0
    for plain, filled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, filled, rtol=1e-4, atol=1e-6)


def test_a_sliding_window_is_refused_and_the_model_keeps_its_attention(ragged):
    model = MistralForCausalLM(MistralConfig(**TINY, sliding_window=2))
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="`padding_free` knows plain causal attention only"):
        fine_tune(model, plan(ragged, True))
    assert model.config._attn_implementation == before


def test_only_causal_tasks_go_without_padding(ragged):
    assert Speed(padding_free=True).packs(ragged)
    assert not Speed(padding_free=True).packs(dataclasses.replace(ragged, task_type="SEQ_CLS"))
