"""Random factors and their spectra, and how far subspaces are apart."""

from __future__ import annotations

import torch

import hrp
from hrp.spectra.factorization import factored_svd


def factors(d_out=20, d_in=30, rank=6, seed=0, dtype=torch.float64, batch=()):
    generator = torch.Generator().manual_seed(seed)
    lora_A = torch.randn(*batch, rank, d_in, generator=generator, dtype=dtype)
    lora_B = torch.randn(*batch, d_out, rank, generator=generator, dtype=dtype)
    return lora_A, lora_B


def module_spectrum(seed=0, rank=6, **shape) -> hrp.ModuleSpectrum:
    U, S, Vh = factored_svd(*factors(seed=seed, rank=rank, **shape))
    return hrp.ModuleSpectrum(U, S, Vh, scaling=1.0)


def sine(X, Y) -> float:
    """Largest distance of a unit vector of span(X) from span(Y)."""
    return torch.linalg.matrix_norm(X - Y @ (Y.mT @ X), 2).item()
