"""Holds the spectra of one preheating's modules, which cross processes, machines and ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hrp.config import Truncation
from hrp.spectra import artefact
from hrp.spectra.factorization import one_thread
from hrp.spectra.module_spectrum import EffectiveRankKind, ModuleSpectrum, Side
from hrp.spectra.truncation import DAMPING, loss_truncation
from hrp.validation import check_choice, check_integer


class Spectrum(Mapping[str, ModuleSpectrum]):
    """Maps module names, sorted, to `ModuleSpectrum`, with the provenance of the preheating.

    The one artefact that crosses processes, machines and ranks: preheat once at a high rank, then
    start adapters of any lower rank from it.

    Args:
        modules: spectrum by module name, as in the base model's ``named_modules()``.
        provenance: JSON types only: config, steps done, loss per step, seed, base model, versions.
        kept: what was trained beside the factors, by the name that a saved adapter gives it; a
            DoRA magnitude as its ratio to the norms of the rows of ``W + delta_weight``.
    """

    def __init__(
        self,
        modules: Mapping[str, ModuleSpectrum],
        provenance: Mapping[str, Any] | None = None,
        kept: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not modules:
            raise ValueError("a Spectrum needs at least one module, got none")
        self._modules = dict(sorted(modules.items()))
        self.provenance: dict[str, Any] = dict(provenance or {})
        self.kept: dict[str, Tensor] = dict(kept or {})

    def __getitem__(self, name: str) -> ModuleSpectrum:
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __repr__(self) -> str:
        ranks = sorted({module.rank for module in self.values()})
        return f"Spectrum({len(self)} modules, ranks {ranks})"

    def crop(self, rank: int) -> Spectrum:
        """Keep the ``rank`` leading triples of each module (all of a module that has fewer).

        Raises ``ValueError`` if no module has as many.
        """
        check_integer("rank", rank, minimum=1)
        largest = max(module.rank for module in self.values())
        if rank > largest:
            raise ValueError(f"`rank` must be at most {largest}, the spectrum's rank, got {rank}")
        cropped = {name: module.crop(min(rank, module.rank)) for name, module in self.items()}
        return Spectrum(cropped, self.provenance, self.kept)

    def truncated(
        self,
        ranks: Mapping[str, int],
        truncation: Truncation = "loss",
        damping: float = DAMPING,
        device: torch.device | str = "cpu",
    ) -> dict[str, ModuleSpectrum]:
        """Cut the modules named in ``ranks``; see `ModuleSpectrum.truncated`.

        The R x R part is done for all modules of one size at once, in float64 on ``device``.
        """
        cut = {name: self[name].truncated(rank, "frobenius") for name, rank in ranks.items()}
        check_choice("truncation", truncation, get_args(Truncation))
        if truncation == "frobenius":
            return cut
        groups: dict[tuple[int, int], list[str]] = {}
        for name, rank in ranks.items():
            if self[name].has_metric:
                groups.setdefault((self[name].rank, rank), []).append(name)
        for (_, rank), names in groups.items():
            S, left, right = (
                torch.stack([getattr(self[name], part) for name in names]).to(device)
                for part in ("S", "left_metric", "right_metric")
            )
            with one_thread():
                cores = loss_truncation(S, left, right, rank, damping)
            for name, P, Q in zip(names, *(part.cpu() for part in cores), strict=True):
                cut[name] = self[name].with_core(P, Q)
        return cut

    def effective_rank(
        self, kind: EffectiveRankKind | Literal["loss"] = "entropy"
    ) -> dict[str, float]:
        """Return the effective rank of each module, by name; see `ModuleSpectrum.effective_rank`.

        With ``"loss"`` it is NaN for a module whose metric was not observed.
        """
        return {
            name: math.nan
            if kind == "loss" and not module.has_metric
            else module.effective_rank(kind)
            for name, module in self.items()
        }

    def subspace_alignment(
        self, other: Spectrum, rank: int, side: Side = "U"
    ) -> dict[str, Float[Tensor, " rank"]]:
        """Return the cosines of the principal angles, module by module.

        Raises ``ValueError`` when the modules of both spectra differ.
        """
        if set(self) != set(other):
            lacking = sorted(set(self) ^ set(other))[:3]
            raise ValueError(f"both spectra must have the same modules; only one has {lacking}")
        return {
            name: module.subspace_alignment(other[name], rank, side)
            for name, module in self.items()
        }

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write the spectrum into a folder of its own; see `artefact.save`."""
        artefact.save(Path(folder), self, self.provenance, self.kept, overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> Spectrum:
        """Read a folder written by `save`; see `artefact.load`."""
        return cls(*artefact.load(Path(folder)))
