"""Reads the spectra of a trained adapter, and their metric where moments were observed."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hrp.adapters.layers import LoraModule
from hrp.adapters.moments import ModuleMoments, Moments
from hrp.errors import PreheatingError
from hrp.spectra.factorization import factored_svd, one_thread
from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum

MODULES_AT_ONCE = 16
"""Largest batch of the factored SVD: enough to fill a GPU, a few hundred MiB at 8B shapes."""

_SHOWN = 5


def read_spectrum(modules: dict[str, LoraModule], moments: Moments | None = None) -> Spectrum:
    """Return the spectra of ``scaling * lora_B @ lora_A`` of an adapter's modules, on the CPU.

    Modules of one shape go through the factored SVD together, on the factors' device, at most
    `MODULES_AT_ONCE` of them, so that its working memory stays small. With ``moments``, each
    module that has any gets its metric.

    A module that no gradient has reached, of which a factor is all zeros, is left out.

    Raises:
        PreheatingError: no gradient has reached any module, or a factor is not finite.

    Warns:
        UserWarning: names the modules that are left out.
    """
    trained = {name: module for name, module in modules.items() if module.is_trained()}
    if not trained:
        raise PreheatingError(
            f"no gradient has reached any of {len(modules)} modules, such as "
            f"{list(modules)[:_SHOWN]}; look at the loss, or preheat longer"
        )
    left_out = sorted(set(modules) - set(trained))
    if left_out:
        warnings.warn(
            f"no gradient has reached {len(left_out)} of {len(modules)} modules, which keep PEFT's "
            f"start: {', '.join(left_out)}",
            stacklevel=3,
        )
    spectra: dict[str, ModuleSpectrum] = {}
    for names, factors_A, factors_B in batches_by_shape(trained):
        _check_finite(names, factors_A, factors_B)
        U, S, Vh = factored_svd(factors_A, factors_B)
        cores = (factors_A @ Vh.mT).double().cpu(), (U.mT @ factors_B).double().cpu()
        U, S, Vh = U.cpu(), S.cpu(), Vh.cpu()
        for i, name in enumerate(names):
            scaling = modules[name].scaling
            sums = moments.total(name) if moments else None
            with one_thread():
                metric = None if sums is None else _metric(sums, cores[0][i], cores[1][i], scaling)
            left, right = metric or (None, None)
            spectra[name] = ModuleSpectrum(
                U[i].clone(), S[i] * scaling, Vh[i].clone(), scaling, left, right
            )
    return Spectrum(spectra)


def _metric(
    sums: ModuleMoments,
    core_A: Float[Tensor, "R k"],
    core_B: Float[Tensor, "k R"],
    scaling: float,
) -> tuple[Float[Tensor, "k k"], Float[Tensor, "k k"]] | None:
    """Take the moments from the basis of the factors to that of U and Vh, each with a mean of 1.

    With ``core_A = A V`` and ``core_B = U^T B``: ``z = core_A (Vh x)`` and
    ``g = scaling * core_B^T (U^T dL/dy)``. None where no gradient was seen.
    """
    if not (sums.inputs.isfinite().all() and sums.gradients.isfinite().all()):
        return None  # too large for float32
    left = torch.linalg.pinv(core_B.mT) / scaling @ _root(sums.gradients)
    right = torch.linalg.pinv(core_A) @ _root(sums.inputs)
    metrics = []
    for root in (left, right):
        metric = root @ root.mT
        # Each gets a mean of 1: sizes have no influence, and a gradient's may not fit float32.
        metrics.append(metric / metric.diagonal().mean().clamp(min=torch.finfo(metric.dtype).tiny))
    if not all(metric.isfinite().all() for metric in metrics):
        return None
    return metrics[0].float(), metrics[1].float()


def _root(moments: Float[Tensor, "R R"]) -> Float[Tensor, "R R"]:
    """Return X with ``X X^T = moments`` in float64, on the CPU; rounding's negatives become 0.

    Moments that are positive semi-definite stay so in any basis, however badly it is conditioned.
    """
    values, vectors = torch.linalg.eigh(moments.double().cpu())
    return vectors * values.clamp(min=0).sqrt()


def batches_by_shape(
    modules: dict[str, LoraModule],
) -> Iterator[tuple[list[str], Float[Tensor, "n rank d_in"], Float[Tensor, "n d_out rank"]]]:
    """Yield names and stacked factors, float32, of up to `MODULES_AT_ONCE` modules of one shape."""
    groups: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    matrices = {name: module.matrices() for name, module in modules.items()}
    for name, (lora_A, lora_B) in matrices.items():
        groups[lora_A.shape, lora_B.shape, lora_A.device].append(name)
    for group in groups.values():
        for start in range(0, len(group), MODULES_AT_ONCE):
            names = group[start : start + MODULES_AT_ONCE]
            yield (
                names,
                torch.stack([matrices[name][0] for name in names]).float(),
                torch.stack([matrices[name][1] for name in names]).float(),
            )


def _check_finite(names: list[str], factors_A: Tensor, factors_B: Tensor) -> None:
    for label, factors in (("lora_A", factors_A), ("lora_B", factors_B)):
        largest = factors.abs().amax(dim=(1, 2)).cpu()  # propagates NaN
        for name, value in zip(names, largest.tolist(), strict=True):
            if not math.isfinite(value):
                raise PreheatingError(
                    f"{label} of module {name!r} holds NaN or infinity after preheating; lower "
                    "`learning_rate` of the HRPConfig"
                )
