"""A CPU that cannot compute in bfloat16 is recognised, and a base in it is warned of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from hrp.adapters import bfloat16


@pytest.fixture
def cpu(monkeypatch):
    """Let PyTorch report these capabilities of the CPU."""

    def having(**capabilities) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    return having


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_any_instruction_for_bfloat16_suffices(cpu, name):
    cpu(avx2=True, architecture="x", cpu_name="y", **{name: True})
    assert bfloat16.has_native_bfloat16()


def test_avx2_alone_does_not(cpu):
    cpu(avx2=True, avx512_f=True, avx512_bf16=False, amx_bf16=False, cpu_name="z")
    assert not bfloat16.has_native_bfloat16()


@pytest.mark.parametrize(("level", "native"), [("AVX2", False), ("DEFAULT", False), ("AVX512", 1)])
def test_an_older_pytorch_is_asked_for_its_level(monkeypatch, level, native):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: level)
    assert bfloat16.has_native_bfloat16() == bool(native)


def test_a_bfloat16_base_is_warned_of_on_such_a_cpu_only(cpu):
    half, full = nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2)
    cpu(avx2=True)
    with pytest.warns(UserWarning, match=r"load it with dtype=torch\.float32"):
        bfloat16.warn_of_slow_bfloat16(half)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bfloat16.warn_of_slow_bfloat16(full)
        cpu(avx2=True, avx512_bf16=True)
        bfloat16.warn_of_slow_bfloat16(half)
