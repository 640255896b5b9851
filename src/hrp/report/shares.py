"""Tells what share of an update lower ranks keep, and which rank that recommends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hrp.spectra.module_spectrum import ModuleSpectrum
from hrp.spectra.spectrum import Spectrum

SHOWN_RANKS = (4, 8, 16, 32)
CANDIDATES = (4, 8, 16, 32, 64)
KEPT = 0.9
"""Share of the median module's update that a recommended rank keeps."""

MARGIN = 4
"""Least ratio of a recommended preheat_rank to a recommended rank."""

TAIL = 0.05
"""Largest share of the update in the last half of the directions that R should leave there."""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


RULE = (
    f"rank: the smallest of {', '.join(map(str, CANDIDATES))} at which the median module keeps "
    f"{_percent(KEPT)}; preheat rank: at least {MARGIN} times that, and twice its present value "
    f"where the last half of the directions holds over {_percent(TAIL)}"
)


def energy(module: ModuleSpectrum) -> np.ndarray:
    """Return the share of ``sum(S^2)`` in the 1, 2, ... leading directions; NaN without update."""
    return _cumulated(module.S.double().numpy())


def loss_share(module: ModuleSpectrum) -> np.ndarray:
    """Return the share of the update that rank 1, 2, ... keeps in the metric of the loss.

    It is that of the best cut of each rank (docs/theory.md, P11); NaN where the metric was not
    observed or the module has no update.
    """
    if not module.has_metric:
        return np.full(module.rank, np.nan)
    return _cumulated(module.loss_values().numpy())


def _cumulated(values: np.ndarray) -> np.ndarray:
    kept = np.cumsum(values**2)
    return kept / kept[-1] if kept[-1] > 0 else np.full(len(kept), np.nan)


def share_at(shares: np.ndarray, rank: int) -> float:
    """Return the share at ``rank``, or that of all directions where there are fewer."""
    return float(shares[min(rank, len(shares)) - 1])


@dataclass(frozen=True)
class Recommendation:
    """Holds a rank and a preheat_rank that follow from what ranks keep (`RULE`).

    Args:
        in_loss: whether the shares are those in the metric of the loss, else of plain energy.
        rank: recommended rank; the largest candidate where ``reached`` is false.
        reached: whether ``rank`` keeps the share `KEPT`.
        preheat_rank: recommended R.
        present: R of the spectrum.
        kept: median share by candidate.
        tail: median share that the last half of the directions holds.
    """

    in_loss: bool
    rank: int
    reached: bool
    preheat_rank: int
    present: int
    kept: dict[int, float]
    tail: float

    @property
    def sentence(self) -> str:
        """Say what is recommended and by which rule, in one line."""
        where = "in the metric of the loss" if self.in_loss else "of the plain energy"
        more, only = ("", "") if self.reached else (" or more", "only ")
        share = f"{only}{_percent(self.kept[self.rank])} {where}"
        said = f"recommended rank {self.rank}{more} (the median module keeps {share})"
        said += f", preheat rank {self.preheat_rank}"
        if self.preheat_rank <= self.present:
            said += f" (the present {self.present} is enough)"
        elif self.tail > TAIL:
            said += (
                f" (the present {self.present} is small: the last half of its directions holds "
                f"{_percent(self.tail)}; preheat anew)"
            )
        else:
            said += f" (the present {self.present} is less than {MARGIN} times it; preheat anew)"
        return f"{said}; {RULE}"


def recommend(spectrum: Spectrum) -> Recommendation | None:
    """Recommend a rank and a preheat_rank by `RULE`; None where no module has an update.

    The shares are those in the metric of the loss, over the modules that have it, and those of
    plain energy where none does.
    """
    modules = list(spectrum.values())
    for in_loss, shares in ((True, loss_share), (False, energy)):
        curves = [curve for curve in map(shares, modules) if np.isfinite(curve[-1])]
        if curves:
            return _recommended(curves, in_loss, max(map(len, curves)))
    return None


def _recommended(curves: Sequence[np.ndarray], in_loss: bool, present: int) -> Recommendation:
    kept = {r: float(np.median([share_at(c, r) for c in curves])) for r in CANDIDATES}
    tail = float(np.median([1 - share_at(c, max(1, len(c) // 2)) for c in curves]))
    rank = next((r for r in CANDIDATES if kept[r] >= KEPT), CANDIDATES[-1])
    wanted = max(MARGIN * rank, 2 * present if tail > TAIL else 0)
    return Recommendation(in_loss, rank, kept[rank] >= KEPT, wanted, present, kept, tail)
