"""The singular value decomposition of one module's update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from hrp.spectra.measures import EffectiveRankKind, effective_rank, principal_cosines
from hrp.validation import check_choice, check_integer

Side = Literal["U", "Vh"]


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
