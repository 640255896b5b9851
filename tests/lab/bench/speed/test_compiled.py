"""Compiled blocks compute what the model computes, from one graph for each kind of adapter."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters

from helpers.tiny import tiny_llama
from helpers.tiny_bench import tiny_task
from hrp_lab.bench.speed import options
from hrp_lab.bench.speed.options import compiled_blocks
from hrp_lab.bench.training import Plan, fine_tune

PLAN = Plan(tiny_task(), 3, 1e-2, seed=0, batch_size=4, training={"logging_steps": 1})


@pytest.fixture(autouse=True)
def _without_a_compiler(monkeypatch):
    """Trace the blocks and run the traces; making kernels, which takes minutes, is left out."""
    monkeypatch.setattr(options, "compiled_blocks", partial(compiled_blocks, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()


def adapter(**settings):
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 2, "target_modules": "all-linear"} | settings)
    return get_peft_model(tiny_llama(), config)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while tracing
@pytest.mark.slow
def test_compiled_blocks_train_as_the_model_does_and_are_compiled_once():
    for rank, graphs in ((2, 1), (2, 1), (3, 2)):
        eager, compiled = adapter(r=rank), adapter(r=rank)
        faster = dataclasses.replace(PLAN, speed=options.Speed(torch_compile=True))
        expected = fine_tune(eager, PLAN)
        trained = fine_tune(compiled, faster)
        torch.testing.assert_close(trained.losses, expected.losses, rtol=1e-4, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.filterwarnings("ignore")
def test_afterwards_the_model_is_as_it_was():
    model = adapter()
    limit = torch._dynamo.config.recompile_limit
    with compiled_blocks(model, backend="aot_eager"):
        compiled = [part for part in model.modules() if part._compiled_call_impl is not None]
        assert {type(part).__name__ for part in compiled} == {"LlamaDecoderLayer"}
    assert not any(part._compiled_call_impl for part in model.modules())
    assert not model.get_input_embeddings()._forward_hooks
    assert torch._dynamo.config.recompile_limit == limit


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"rank_pattern": {"layers.1.mlp.up_proj": 3}}]
)
def test_variants_and_blocks_that_differ_run_as_they_are(settings):
    model = adapter(**settings)
    with compiled_blocks(model):
        assert not any(part._compiled_call_impl for part in model.modules())
