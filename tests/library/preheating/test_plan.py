"""What is wrapped is unwrapped, and a loop's length and rate follow from two numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

import hrp
from helpers.tiny import assert_identical, fingerprint, loader, tiny_llama, with_lora

CONFIG = hrp.HRPConfig(preheat_rank=16, preheat_steps=2, learning_rate=1e-2)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture(params=["compiled", "DDP", "compiled DDP"])
def wrap(request, one_process):
    def wrapped(model):
        if "DDP" in request.param:
            model = DistributedDataParallel(model)
        return torch.compile(model, backend="eager") if "compiled" in request.param else model

    return wrapped


def test_a_wrapped_model_is_started_as_the_model_in_it(wrap):
    bare, inner = with_lora(tiny_llama()), with_lora(tiny_llama())
    wrapped = wrap(inner)
    assert hrp.apply_hrp(bare, CONFIG, dataloader=loader()) is bare
    assert hrp.apply_hrp(wrapped, CONFIG, dataloader=loader()) is wrapped
    assert_identical(fingerprint(bare), fingerprint(inner))


def test_a_wrapped_model_preheats_and_takes_a_spectrum(wrap):
    bare, inner = with_lora(tiny_llama()), with_lora(tiny_llama())
    spectrum = hrp.preheat(wrap(inner), CONFIG, dataloader=loader())
    hrp.initialize_lora_hrp_weights(bare, spectrum)
    hrp.initialize_lora_hrp_weights(wrap(inner), spectrum)
    assert_identical(fingerprint(bare), fingerprint(inner))


def test_a_loop_needs_its_steps_and_its_rate_and_no_arithmetic(model):
    config = hrp.HRPConfig(preheat_rank=16)
    spectrum = hrp.preheat(model, config, dataloader=loader(), total_steps=20, learning_rate=4e-3)
    assert spectrum.provenance["steps"] == 4
    assert spectrum.provenance["learning_rate"] == pytest.approx(4e-3 * math.sqrt(4 / 16))
    by_hand = hrp.HRPConfig(preheat_rank=16, preheat_steps=4, learning_rate=2e-3)
    other = hrp.preheat(model, by_hand, dataloader=loader())
    assert spectrum.provenance["losses"] == other.provenance["losses"]


@pytest.mark.parametrize("given", [{"total_steps": 0}, {"learning_rate": -1.0}])
def test_steps_and_rate_of_a_loop_are_checked(model, given):
    (name,) = given
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        hrp.preheat(model, CONFIG, dataloader=loader(), **given)
