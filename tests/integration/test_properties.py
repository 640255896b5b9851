"""Configs, spectra and starts keep their properties over drawn settings, shapes and dtypes."""

from __future__ import annotations

import dataclasses
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

import hrp
from hrp.adapters.layers import lora_modules
from hrp.spectra.factorization import factored_svd
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum

FEW = settings(max_examples=60, deadline=None, derandomize=True)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
numbers = st.one_of(
    st.integers(-2, 300), st.floats(allow_nan=True), st.booleans(), st.none(), st.just("auto")
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "preheat_rank": numbers,
        "preheat_steps": numbers,
        "direction": st.sampled_from(["A", "B", "AB", "a", "", None]),
        "scale": numbers,
        "train_factors": st.sampled_from(["both", "A", "B", "AB"]),
        "learning_rate": numbers,
        "seed": numbers,
        "max_preheat_steps": numbers,
        "subspace_tolerance": numbers,
        "subspace_window": numbers,
    },
)


def drawn(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@FEW
@given(fields)
def test_a_config_is_refused_by_name_or_survives_json(given_fields):
    config, refusal = None, ""
    try:
        config = hrp.HRPConfig(**given_fields)
    except ValueError as error:
        refusal = str(error)
    if config is None:
        assert any(f"`{field.name}`" in refusal for field in dataclasses.fields(hrp.HRPConfig))
        return
    assert hrp.HRPConfig.from_json(config.to_json()) == config
    assert config.of_run(100).step_limit >= 1


@FEW
@given(
    d_out=st.integers(1, 24), d_in=st.integers(1, 24), rank=st.integers(1, 30),
    dependent=st.booleans(), exponent=st.integers(-6, 6), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)  # fmt: skip
def test_the_factored_svd_is_the_svd_of_the_product(
    d_out, d_in, rank, dependent, exponent, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    lora_A, lora_B = drawn(generator, rank, d_in), drawn(generator, d_out, rank)
    if dependent:
        lora_A[-1] = lora_A[0]
    if dtype != torch.float16:  # whose range ends
        lora_A *= 10.0**exponent
    lora_A, lora_B = lora_A.to(dtype), lora_B.to(dtype)
    U, S, Vh = factored_svd(lora_A, lora_B, scaling=0.5)
    k = min(rank, d_out, d_in)
    assert (U.shape, S.shape, Vh.shape) == ((d_out, k), (k,), (k, d_in))
    assert U.dtype == S.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    product = 0.5 * lora_B.double() @ lora_A.double()
    size = product.norm().item() + 1e-300
    assert ((U.double() * S.double()) @ Vh.double() - product).norm().item() < 1e-5 * size
    for basis in (U.double().mT @ U.double(), Vh.double() @ Vh.double().mT):
        torch.testing.assert_close(basis, torch.eye(k).double(), atol=1e-5, rtol=0)
    assert (S >= 0).all()
    assert (S.diff() <= 1e-6 * S[0]).all()


class OneLayer(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def update_of(model: nn.Module) -> torch.Tensor:
    (module,) = lora_modules(model, "default").values()
    lora_A, lora_B = module.matrices()
    return module.scaling * lora_B.double() @ lora_A.double()


@FEW
@given(
    d_out=st.integers(1, 12), d_in=st.integers(1, 12), extra=st.integers(0, 6),
    alpha=st.integers(1, 64), rslora=st.booleans(), kind=st.sampled_from(["linear", "conv"]),
    dtype=st.sampled_from(DTYPES), direction=st.sampled_from(["A", "B", "AB"]),
    seed=st.integers(0, 2**31), data=st.data(),
)  # fmt: skip
def test_every_start_is_a_no_op_or_the_truncated_update(
    d_out, d_in, extra, alpha, rslora, kind, dtype, direction, seed, data
):
    rank = data.draw(st.integers(1, min(d_out, d_in)), "rank")
    preheat_rank = min(rank + extra, d_out, d_in)
    torch.manual_seed(seed)
    layer = nn.Linear(d_in, d_out) if kind == "linear" else nn.Conv1d(d_in, d_out, 1)
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=rslora, target_modules=["layer"])
    model = get_peft_model(OneLayer(layer).to(dtype), config, autocast_adapter_dtype=False)
    generator = torch.Generator().manual_seed(seed)
    full = factored_svd(drawn(generator, preheat_rank, d_in), drawn(generator, d_out, preheat_rank))
    U, S, Vh = (part.float() for part in full)
    spectrum = Spectrum({"layer": ModuleSpectrum(U, S, Vh, scaling=1.0)})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hrp.initialize_lora_hrp_weights(model, spectrum, direction)
    for name, value in model.state_dict().items():
        assert value.dtype == dtype
        if "lora_" not in name:
            assert torch.equal(value, before[name])
    if direction in ("A", "B"):
        assert not update_of(model).any()
        return
    expected = (U[:, :rank] * S[:rank]).double() @ Vh[:rank].double()
    eps = torch.finfo(dtype).eps if dtype.itemsize == 2 else torch.finfo(torch.float32).eps
    error = (update_of(model) - expected).norm().item()
    assert error <= 4 * math.sqrt(rank) * eps * expected.norm().item() + 1e-6
