"""Holds the singular value decomposition of one module's update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from hrp.config import Truncation
from hrp.spectra.factorization import factored_svd
from hrp.spectra.truncation import DAMPING, loss_truncation, loss_values
from hrp.validation import check_choice, check_integer

Side = Literal["U", "Vh"]
EffectiveRankKind = Literal["entropy", "stable", "energy"]


@dataclass(frozen=True, eq=False)
class ModuleSpectrum:
    """Holds one module's update as its thin SVD, ``scaling * lora_B @ lora_A = U diag(S) Vh``.

    Args:
        U: (d_out, rank), orthonormal columns.
        S: (rank,), descending, including ``scaling``.
        Vh: (rank, d_in), orthonormal rows.
        scaling: of the adapter that was preheated, for provenance: ``S`` already holds it.
        left_metric: (rank, rank), second moments of ``U^T dL/dy``, up to a factor; None where they
            were not observed.
        right_metric: (rank, rank), second moments of ``Vh x``; None likewise.
    """

    U: Float[Tensor, "d_out rank"]
    S: Float[Tensor, " rank"]
    Vh: Float[Tensor, "rank d_in"]
    scaling: float
    left_metric: Float[Tensor, "rank rank"] | None = None
    right_metric: Float[Tensor, "rank rank"] | None = None

    @property
    def has_metric(self) -> bool:
        """Return whether the update can be cut in the metric of the loss."""
        return self.left_metric is not None and self.right_metric is not None

    @property
    def rank(self) -> int:
        """Return the number of singular triples held."""
        return self.S.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (d_out, d_in) of the update."""
        return self.U.shape[0], self.Vh.shape[1]

    def crop(self, rank: int) -> ModuleSpectrum:
        """Keep the ``rank`` leading triples; raises ``ValueError`` if there are fewer."""
        check_integer("rank", rank, minimum=1)
        if rank > self.rank:
            raise ValueError(
                f"`rank` must be at most the spectrum's rank {self.rank}, got {rank}; preheat "
                "with a higher `preheat_rank`"
            )
        left, right = (
            None if metric is None else metric[:rank, :rank].clone()
            for metric in (self.left_metric, self.right_metric)
        )
        U, S, Vh = self.U[:, :rank].clone(), self.S[:rank].clone(), self.Vh[:rank].clone()
        return ModuleSpectrum(U, S, Vh, self.scaling, left, right)

    def truncated(
        self, rank: int, truncation: Truncation = "loss", damping: float = DAMPING
    ) -> ModuleSpectrum:
        """Cut the update to ``rank`` so that it loses least, and return its own spectrum.

        ``"loss"`` is the optimum in the metric of the loss (docs/theory.md, P11), whose singular
        vectors are not among those of the whole update; ``"frobenius"``, and a spectrum without a
        metric, keep the leading triples as `crop` does. Raises ``ValueError`` as `crop` does.
        """
        check_choice("truncation", truncation, get_args(Truncation))
        leading = self.crop(rank)
        if truncation == "frobenius" or self.left_metric is None or self.right_metric is None:
            return leading
        P, Q = loss_truncation(self.S, self.left_metric, self.right_metric, rank, damping)
        return self.with_core(P, Q)

    def with_core(self, P: Float[Tensor, "rank k"], Q: Float[Tensor, "k rank"]) -> ModuleSpectrum:
        """Return the spectrum of ``U @ P @ Q @ Vh``, of rank k, in the dtype of this one."""
        U, S, Vh = factored_svd(Q, P)
        dtype = self.U.dtype
        left, right = (self.U.double() @ U).to(dtype), (Vh @ self.Vh.double()).to(dtype)
        return ModuleSpectrum(left, S.to(dtype), right, self.scaling)

    def truncate(
        self, rank: int, truncation: Truncation = "loss", damping: float = DAMPING
    ) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, "k d_in"]]:
        """Return balanced factors (lora_B, lora_A), without scaling, of the update cut to ``rank``.

        Their product is the truncated update, sqrt(S) on either side; see `truncated`.
        """
        cut = self.truncated(rank, truncation, damping)
        root = cut.S.sqrt()
        return cut.U * root, root[:, None] * cut.Vh

    def loss_values(self, damping: float = DAMPING) -> Float[Tensor, " rank"]:
        """Return singular values in the metric of the loss; ``ValueError`` without that metric."""
        if self.left_metric is None or self.right_metric is None:
            raise ValueError(
                "the metric of the loss must have been observed, got a spectrum without; preheat "
                "anew (spectra of modules such as experts have none)"
            )
        return loss_values(self.S, self.left_metric, self.right_metric, damping)

    def effective_rank(self, kind: EffectiveRankKind | Literal["loss"] = "entropy") -> float:
        """Return `effective_rank` of S; ``"loss"`` is "entropy" in the metric of the loss."""
        if kind == "loss":
            return effective_rank(self.loss_values(), "entropy")
        return effective_rank(self.S, kind)

    def subspace_alignment(
        self, other: ModuleSpectrum, rank: int, side: Side = "U"
    ) -> Float[Tensor, " rank"]:
        """Return the cosines of the principal angles between both's ``rank`` leading directions.

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


def effective_rank(S: Float[Tensor, " rank"], kind: EffectiveRankKind = "entropy") -> float:
    """Return how many directions a spectrum really uses, between 1 and ``len(S)``.

    - ``"entropy"``: exp of the Shannon entropy of ``S / sum(S)`` (Roy and Vetterli 2007);
    - ``"stable"``: ``sum(S^2) / max(S)^2``, the stable rank;
    - ``"energy"``: the fewest leading values whose squares hold nine tenths of the total.

    Raises:
        ValueError: unknown ``kind``, or no positive singular value.

    >>> round(effective_rank(torch.ones(5)), 6), effective_rank(torch.tensor([3.0, 4.0]), "stable")
    (5.0, 1.5625)
    """
    check_choice("kind", kind, get_args(EffectiveRankKind))
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
    reached = held >= 0.9 * held[-1] * (1 - 1e-12)
    return float(reached.int().argmax().item() + 1)


def principal_cosines(X: Float[Tensor, "dim k"], Y: Float[Tensor, "dim k"]) -> Float[Tensor, " k"]:
    """Return the cosines of the principal angles between two column spaces, descending.

    ``X`` and ``Y`` have orthonormal columns; the cosines are the singular values of ``X^T Y``
    (Bjorck and Golub 1973).

    >>> principal_cosines(torch.eye(3)[:, :2], torch.eye(3)[:, 1:]).tolist()
    [1.0, 0.0]
    """
    return torch.linalg.svdvals(X.mT @ Y.to(X)).clamp(max=1.0)
