"""Ranks from the spectrum keep the most energy for their parameters, and each module's scaling."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

import hrp
from helpers.tiny import loader, tiny_llama, with_lora
from hrp.adapters.layers import lora_modules
from hrp.adapters.patterns import lora_fields
from hrp.spectra.allocation import energy_ranks, kept_energy, parameter_count, uniform_ranks
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum


def spectrum(shapes: list[tuple[int, int]], seed: int, rank: int = 4) -> Spectrum:
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for i, (d_out, d_in) in enumerate(shapes):
        values = torch.rand(rank, generator=generator, dtype=torch.float64) ** 3
        modules[f"module{i}"] = ModuleSpectrum(
            torch.eye(d_out, rank, dtype=torch.float64),
            values.sort(descending=True).values,
            torch.eye(rank, d_in, dtype=torch.float64),
            2.0,
        )
    return Spectrum(modules)


def best_energy(found: Spectrum, budget: int) -> float:
    """By trying every choice of ranks."""
    choices = itertools.product(*(range(1, module.rank + 1) for module in found.values()))
    affordable = [
        ranks
        for choice in choices
        if parameter_count(found, ranks := dict(zip(found, choice, strict=True))) <= budget
    ]
    return max(kept_energy(found, ranks) for ranks in affordable)


@pytest.mark.parametrize("seed", range(6))
def test_modules_of_one_size_get_the_best_ranks_there_are(seed):
    found = spectrum([(8, 6), (6, 8), (7, 7)], seed)
    for budget in range(42, 14 * 12 + 1, 9):
        assert kept_energy(found, energy_ranks(found, budget)) == pytest.approx(
            best_energy(found, budget)
        )


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), extra=st.integers(0, 150))
def test_modules_of_several_sizes_lose_less_than_one_direction(seed, extra):
    found = spectrum([(8, 6), (12, 9), (5, 5)], seed)
    budget = 45 + extra
    ranks = energy_ranks(found, budget)
    assert parameter_count(found, ranks) <= budget
    total = sum(module.S.square().sum().item() for module in found.values())
    left_out = [
        module.S[ranks[name]].square().item() / total
        for name, module in found.items()
        if ranks[name] < module.rank
    ]
    shortfall = best_energy(found, budget) - kept_energy(found, ranks)
    assert shortfall <= max(left_out, default=0.0) + 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_more_energy_is_kept_than_by_uniform_ranks_of_the_same_size(seed):
    found = spectrum([(8, 6)] * 5, seed, rank=6)
    uniform = uniform_ranks(found, 3)
    ranks = energy_ranks(found, parameter_count(found, uniform))
    assert parameter_count(found, ranks) == parameter_count(found, uniform)
    assert kept_energy(found, ranks) > kept_energy(found, uniform)


def test_a_budget_for_everything_keeps_everything():
    found = spectrum([(8, 6), (12, 9)], 0)
    ranks = energy_ranks(found, 10_000)
    assert ranks == uniform_ranks(found, 4)
    assert kept_energy(found, ranks) == pytest.approx(1.0)


def test_directions_without_energy_get_no_parameters():
    found = spectrum([(8, 6)], 0)
    module = found["module0"]
    values = torch.tensor([1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    flat = Spectrum({"module0": ModuleSpectrum(module.U, values, module.Vh, 2.0)})
    assert energy_ranks(flat, 10_000) == {"module0": 2}


def test_a_budget_below_rank_one_is_refused_with_the_least_there_is():
    found = spectrum([(8, 6), (12, 9)], 0)
    with pytest.raises(ValueError, match=r"at least 35 parameters.* each of 2 modules, got 34"):
        energy_ranks(found, 34)
    assert energy_ranks(found, 35) == {"module0": 1, "module1": 1}


@pytest.mark.parametrize("use_rslora", [False, True])
def test_each_module_keeps_the_scaling_of_the_uniform_adapter(use_rslora):
    uniform = with_lora(tiny_llama(), r=4, lora_alpha=6, use_rslora=use_rslora)
    config = hrp.HRPConfig(preheat_rank=16, preheat_steps=2, learning_rate=1e-2)
    found = hrp.preheat(uniform, config, dataloader=loader())
    scaling = 6 / math.sqrt(4) if use_rslora else 6 / 4
    budget = parameter_count(found, uniform_ranks(found, 4))
    ranks = energy_ranks(found, budget)
    fields = lora_fields(ranks, scaling, use_rslora)
    assert fields["r"] == max(ranks.values())
    model = get_peft_model(
        tiny_llama(), LoraConfig(target_modules="all-linear", use_rslora=use_rslora, **fields)
    )
    modules = lora_modules(model, "default")
    assert {name: module.rank for name, module in modules.items()} == ranks
    assert len(set(ranks.values())) > 1
    for module in modules.values():
        assert module.scaling == pytest.approx(scaling)
    hrp.initialize_lora_hrp_weights(model, found, "AB")


def test_a_name_that_ends_in_another_gets_its_own_rank():
    fields = lora_fields({"proj": 2, "block.proj": 3, "other": 4}, 2.0)
    assert list(fields["rank_pattern"].items()) == [(r"block\.proj", 3), ("^proj", 2)]
    assert fields["lora_alpha"] == 8
    assert fields["alpha_pattern"] == {r"block\.proj": 6, "^proj": 4}


class NestedNames(torch.nn.Module):
    """A module's name is the end of another's."""

    def __init__(self) -> None:
        super().__init__()
        self.block = torch.nn.ModuleDict({"proj": torch.nn.Linear(32, 32)})
        self.proj = torch.nn.Linear(32, 6)

    def forward(self, x):
        return self.proj(self.block["proj"](x))


def test_a_pattern_for_a_module_leaves_alone_one_whose_name_ends_in_it():
    fields = lora_fields({"block.proj": 8, "proj": 2}, 2.0)
    config = LoraConfig(target_modules=["block.proj", "proj"], **fields)
    found = lora_modules(get_peft_model(NestedNames(), config), "default")
    assert {name: module.rank for name, module in found.items()} == {"block.proj": 8, "proj": 2}


def test_the_cap_of_a_small_module_leaves_alone_one_whose_name_ends_in_its_name():
    torch.manual_seed(0)
    model = get_peft_model(NestedNames(), LoraConfig(r=2, target_modules=["block.proj", "proj"]))
    batches = [torch.randn(4, 32) for _ in range(3)]
    spectrum = hrp.preheat(
        model, hrp.HRPConfig(16, 3), dataloader=batches,
        loss_fn=lambda net, x: net(x).square().mean(),
    )  # fmt: skip
    assert {name: one.rank for name, one in spectrum.items()} == {"block.proj": 16, "proj": 6}
