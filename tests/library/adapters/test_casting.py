"""Inputs left to autocast give the same bits; without autocast PEFT's own casts stay."""

from __future__ import annotations

import contextlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from helpers.tiny import tiny_llama
from hrp.adapters.casting import casts_left_to_autocast


def half_precision_model(**settings):
    """A bfloat16 base with float32 factors, none of them zero."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", **settings)
    model = get_peft_model(tiny_llama().to(torch.bfloat16), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight, dtype=torch.float32) / 10
    return model


def loss_and_gradients(model) -> list[torch.Tensor]:
    ids = torch.arange(32).reshape(2, 16) % 16
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


def casting(model) -> set[bool]:
    return {one.cast_input_dtype_enabled for one in model.modules() if isinstance(one, LoraLayer)}


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_casts_left_to_autocast_give_the_same_bits(settings):
    model = half_precision_model(**settings)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(model)
        with casts_left_to_autocast(model):
            found = loss_and_gradients(model)
            assert casting(model) == {"use_dora" in settings}
    assert len(found) > 10
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_without_autocast_inputs_are_cast_as_ever():
    model = half_precision_model()
    expected = loss_and_gradients(model)
    with casts_left_to_autocast(model):
        found = loss_and_gradients(model)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_layers_are_left_as_they_were_after_a_failure():
    model = half_precision_model()
    with contextlib.suppress(ZeroDivisionError), casts_left_to_autocast(model):
        with torch.autocast("cpu", torch.bfloat16):
            loss_and_gradients(model)
        assert casting(model) == {False}
        raise ZeroDivisionError
    assert casting(model) == {True}
    assert not any(one._forward_pre_hooks for one in model.modules())
