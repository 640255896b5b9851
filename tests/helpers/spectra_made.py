"""Spectra with known content, made offline."""

from __future__ import annotations

import torch

from hrp.spectra.factorization import factored_svd
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum

KINDS = {
    "self_attn.q_proj": (24, 16),
    "self_attn.v_proj": (8, 16),
    "mlp.down_proj": (16, 32),
}


def made_spectrum(seed=0, layers=3, rank=8, prefix="model.layers", **provenance) -> Spectrum:
    """Make a spectrum whose singular values decay faster in the lower layers."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for layer in range(layers):
        for kind, (d_out, d_in) in KINDS.items():
            decay = torch.exp(-torch.arange(rank) / (1.0 + layer))
            A = torch.randn(rank, d_in, generator=generator) * decay[:, None]
            B = torch.randn(d_out, rank, generator=generator)
            modules[f"{prefix}.{layer}.{kind}"] = ModuleSpectrum(*factored_svd(A, B), 1.0)
    facts = {
        "config": {"preheat_rank": rank},
        "base_model": "base-lm-30m",
        "losses": [3.0, 2.5, 2.2],
    }
    return Spectrum(modules, facts | provenance)
