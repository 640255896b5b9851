import doctest
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

import hrp_lab.bench.costs
from hrp_lab.bench.context import Setup
from hrp_lab.bench.costs import (
    Costs,
    ModelSize,
    equivalent_steps,
    factored_svd_flops,
    forward_flops,
    full_finetuning_flops,
    gradient_flops,
    lora_flops,
    lora_parameters,
    svd_flops,
)
from hrp_lab.bench.training import CountingCollator

WIDTHS = [(48, 32), (24, 48), (40, 24)]  # (d_out, d_in), chained
TOKENS = 10


def counted(step):
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def chain(x, weights, adapters):
    for weight, (A, B) in zip(weights, adapters, strict=True):
        x = x @ weight.T + (x @ A.T) @ B.T
    return x


def make(train_base, train_A=True, rank=4):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(s, generator=generator, requires_grad=train_base) for s in WIDTHS]
    adapters = [
        (
            torch.randn(rank, d_in, generator=generator, requires_grad=train_A),
            torch.randn(d_out, rank, generator=generator, requires_grad=True),
        )
        for d_out, d_in in WIDTHS
    ]
    # The input asks for a gradient, as it does inside a network with layers before these.
    return torch.randn(TOKENS, 32, generator=generator, requires_grad=True), weights, adapters


N = sum(d_out * d_in for d_out, d_in in WIDTHS)
P = lora_parameters(4, WIDTHS)


def test_the_doctests_hold():
    assert doctest.testmod(hrp_lab.bench.costs).failed == 0


def test_lora_training_costs_what_a_counter_counts():
    x, weights, adapters = make(train_base=False)
    assert counted(lambda: chain(x, weights, adapters).sum().backward()) == lora_flops(
        ModelSize(N), TOKENS, P
    )


def test_a_frozen_factor_saves_only_its_own_gradient():
    x, weights, adapters = make(train_base=False, train_A=False)
    trained = sum(4 * d_out for d_out, _ in WIDTHS)
    assert counted(lambda: chain(x, weights, adapters).sum().backward()) == lora_flops(
        ModelSize(N), TOKENS, P, trained_parameters=trained
    )


def test_full_fine_tuning_and_gradient_estimation_cost_what_a_counter_counts():
    x, weights, _ = make(train_base=True)

    def step():
        y = x
        for weight in weights:
            y = y @ weight.T
        y.sum().backward()

    expected = counted(step)
    assert full_finetuning_flops(ModelSize(N), TOKENS) == expected
    assert gradient_flops(ModelSize(N), TOKENS, target_parameters=N) == expected


def test_the_attention_term_is_that_of_a_counter():
    layers, heads, width, length = 1, 2, 8, 16
    q, k, v = (torch.randn(1, heads, length, width // heads, requires_grad=True) for _ in range(3))
    model = ModelSize(0, num_layers=layers, hidden_size=width, sequence_length=length)

    def attend():
        return torch.softmax(q @ k.mT, -1) @ v

    assert counted(attend) == forward_flops(model, length)
    assert counted(lambda: attend().sum().backward()) == lora_flops(model, length, 0)


def test_lora_costs_two_thirds_of_full_fine_tuning_for_a_small_rank():
    model = ModelSize(10**9)
    ratio = lora_flops(model, 1, 10**6) / full_finetuning_flops(model, 1)
    assert ratio == pytest.approx(2 / 3, rel=2e-3)


def test_a_preheating_step_at_rank_128_is_charged_more_than_one_step_at_rank_4():
    model, shapes = ModelSize(27_000_000), [(512, 512)] * 56
    small, large = (lora_flops(model, 1, lora_parameters(rank, shapes)) for rank in (4, 128))
    assert equivalent_steps(50 * large, small) > 50


@pytest.mark.parametrize(("d_out", "d_in", "rank"), [(64, 64, 8), (2048, 512, 128)])
def test_the_factored_svd_is_cheaper_than_the_dense_one(d_out, d_in, rank):
    assert factored_svd_flops(d_out, d_in, rank) < svd_flops(d_out, d_in)


def test_whole_steps_are_charged_without_rounding_errors_adding_one():
    assert equivalent_steps(sum([0.1] * 3), 0.1) == 3
    assert equivalent_steps(1e-9, 1.0) == 1


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_costs_that_cannot_be_are_refused(value):
    with pytest.raises(ValueError, match="`wall_s` must be finite and >= 0"):
        Costs(wall_s=value)
    with pytest.raises(ValueError, match="`step_flops` must be"):
        equivalent_steps(1.0, value)


def test_gpt2_s_own_kind_of_linear_layer_counts():
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=48, n_positions=8, n_embd=16, n_layer=1, n_head=2)
    )
    setup = SimpleNamespace(bench=SimpleNamespace(skeleton=lambda spec: model), spec=None)
    setup.tokens_per_row = 8
    size = Setup.size.func(setup)
    assert size.matmul_parameters == 12 * 16**2 + 48 * 16  # attention 4, feed-forward 8, the head


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("persistent", [False, True])
def test_tokens_are_counted_wherever_batches_are_made(tmp_path, workers, persistent):
    rows = [{"input_ids": [0] * length} for length in range(1, 13)]
    collator = CountingCollator(len, tmp_path / "tokens")
    loader = DataLoader(
        rows,
        2,
        collate_fn=collator,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
    )
    for _ in range(2):
        assert list(loader) == [2] * 6
    collator.collect()
    assert [collator.tokens(batches) for batches in (1, 2, 6, 7, 12)] == [3, 10, 78, 81, 156]
