"""Singular value decompositions of LoRA updates, computed from the factors alone.

Pure functions and plain data: this module knows torch, and nothing of PEFT or transformers.
Reading and writing folders is in `hrp.artefact`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hrp.config import check_choice, check_integer
from hrp.factorization import factored_svd

__all__ = [
    "ModuleSpectrum",
    "Spectrum",
    "effective_rank",
    "factored_svd",
    "principal_cosines",
]

EffectiveRankKind = Literal["entropy", "stable", "energy"]
Side = Literal["U", "Vh"]


def effective_rank(
    S: Float[Tensor, " rank"], kind: EffectiveRankKind = "entropy", energy: float = 0.9
) -> float:
    """How many directions a spectrum really uses, between 1 and ``len(S)``.

    - ``"entropy"``: exp of the Shannon entropy of ``S / sum(S)`` (Roy and Vetterli 2007);
    - ``"stable"``: ``sum(S^2) / max(S)^2``, the stable rank;
    - ``"energy"``: the fewest leading values whose squares hold the share ``energy`` of the total.

    Raises:
        ValueError: unknown ``kind``, ``energy`` outside (0, 1], or no positive singular value.

    >>> round(effective_rank(torch.ones(5)), 6), effective_rank(torch.tensor([3.0, 4.0]), "stable")
    (5.0, 1.5625)
    """
    check_choice("kind", kind, get_args(EffectiveRankKind))
    if not 0 < energy <= 1:
        raise ValueError(f"`energy` must be in (0, 1], got {energy!r}")
    values = S.double()
    if not values.numel() or values.max() <= 0:
        raise ValueError("an effective rank needs a positive singular value, got none")
    if kind == "entropy":
        share = values / values.sum()
        return torch.special.entr(share).sum().exp().item()
    squares = values.square()
    if kind == "stable":
        return (squares.sum() / squares.max()).item()
    held = squares.sort(descending=True).values.cumsum(0)
    # Rounding may leave the last sum a hair under the total's share.
    reached = held >= energy * held[-1] * (1 - 1e-12)
    return float(reached.int().argmax().item() + 1)


def principal_cosines(X: Float[Tensor, "dim k"], Y: Float[Tensor, "dim k"]) -> Float[Tensor, " k"]:
    """Cosines of the principal angles between two column spaces, descending.

    ``X`` and ``Y`` have orthonormal columns; the cosines are the singular values of ``X^T Y``
    (Bjorck and Golub 1973).

    >>> principal_cosines(torch.eye(3)[:, :2], torch.eye(3)[:, 1:]).tolist()
    [1.0, 0.0]
    """
    return torch.linalg.svdvals(X.mT @ Y.to(X)).clamp(max=1.0)


@dataclass(frozen=True, eq=False)
class ModuleSpectrum:
    """Thin SVD of one module's update, ``scaling * lora_B @ lora_A = U diag(S) Vh``.

    Args:
        U: (d_out, rank), orthonormal columns.
        S: (rank,), descending, including ``scaling``.
        Vh: (rank, d_in), orthonormal rows.
        scaling: of the adapter that was preheated, for provenance: ``S`` already holds it.
    """

    U: Float[Tensor, "d_out rank"]
    S: Float[Tensor, " rank"]
    Vh: Float[Tensor, "rank d_in"]
    scaling: float

    @property
    def rank(self) -> int:
        """Number of singular triples held."""
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the update."""
        return self.U.shape[0], self.Vh.shape[1]

    def crop(self, rank: int) -> ModuleSpectrum:
        """Keep the ``rank`` leading triples; raises ``ValueError`` if there are fewer."""
        check_integer("rank", rank, minimum=1)
        if rank > self.rank:
            raise ValueError(
                f"`rank` must be at most the spectrum's rank {self.rank}, got {rank}; preheat "
                "with a higher `preheat_rank`"
            )
        return ModuleSpectrum(
            self.U[:, :rank].clone(), self.S[:rank].clone(), self.Vh[:rank].clone(), self.scaling
        )

    def effective_rank(self, kind: EffectiveRankKind = "entropy") -> float:
        """See `effective_rank`."""
        return effective_rank(self.S, kind)

    def subspace_alignment(
        self, other: ModuleSpectrum, rank: int, side: Side = "U"
    ) -> Float[Tensor, " rank"]:
        """Cosines of the principal angles between the ``rank`` leading directions of both.

        ``side`` chooses the left ("U": outputs, direction "B") or the right ("Vh": inputs,
        direction "A") singular vectors. Raises ``ValueError`` on other shapes or too few triples.
        """
        check_choice("side", side, get_args(Side))
        if self.shape != other.shape:
            raise ValueError(
                f"the spectra must be of one shape (d_out, d_in), got {self.shape} and "
                f"{other.shape}"
            )
        one, two = self.crop(rank), other.crop(rank)
        if side == "U":
            return principal_cosines(one.U, two.U)
        return principal_cosines(one.Vh.mT, two.Vh.mT)


class Spectrum(Mapping[str, ModuleSpectrum]):
    """Module name -> `ModuleSpectrum`, sorted by name, with the provenance of the preheating.

    The one artefact that crosses processes, machines and ranks: preheat once at a high rank, then
    start adapters of any lower rank from it.

    Args:
        modules: spectrum by module name, as in the base model's ``named_modules()``.
        provenance: JSON types only: config, steps done, loss per step, seed, base model, versions.
    """

    def __init__(
        self, modules: Mapping[str, ModuleSpectrum], provenance: Mapping[str, Any] | None = None
    ) -> None:
        if not modules:
            raise ValueError("a Spectrum needs at least one module, got none")
        self._modules = dict(sorted(modules.items()))
        self.provenance: dict[str, Any] = dict(provenance or {})

    def __getitem__(self, name: str) -> ModuleSpectrum:
        """Return the spectrum of one module."""
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over module names, sorted."""
        return iter(self._modules)

    def __len__(self) -> int:
        """Return the number of modules."""
        return len(self._modules)

    def __repr__(self) -> str:
        """Name the size instead of printing tensors."""
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
        return Spectrum(cropped, self.provenance)

    def effective_rank(self, kind: EffectiveRankKind = "entropy") -> dict[str, float]:
        """Effective rank of each module, by name; see `effective_rank` for the kinds."""
        return {name: module.effective_rank(kind) for name, module in self.items()}

    def subspace_alignment(
        self, other: Spectrum, rank: int, side: Side = "U"
    ) -> dict[str, Float[Tensor, " rank"]]:
        """Cosines of the principal angles, module by module.

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
        """Write ``spectrum.safetensors`` and ``spectrum.json``; see `hrp.artefact.save`."""
        from hrp import artefact

        artefact.save(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, folder: str | Path) -> Spectrum:
        """Read a folder written by `save`; see `hrp.artefact.load`."""
        from hrp import artefact

        return artefact.load(Path(folder))
