"""Stops preheating once the leading subspaces have settled (``preheat_steps="auto"``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from accelerate.utils import broadcast_object_list

from hrp.adapters.layers import LoraModule
from hrp.adapters.reading import read_spectrum
from hrp.config import Direction, HRPConfig
from hrp.spectra.module_spectrum import Side
from hrp.spectra.spectrum import Spectrum

# The singular vectors that each direction puts into the adapter (docs/method.md).
SIDES: dict[Direction, tuple[Side, ...]] = {"A": ("Vh",), "B": ("U",), "AB": ("U", "Vh")}


def subspace_turn(before: Spectrum, after: Spectrum, sides: tuple[Side, ...]) -> float:
    """Return how far the subspaces turned: 1 - the smallest principal cosine, median of modules.

    Both spectra are cropped to the ranks that matter, module by module; a module that one of them
    lacks is passed over. 0: they did not move;
    1: in at least half of the modules some direction of one is orthogonal to all of the other.
    """
    smallest = [
        min(
            float(module.subspace_alignment(after[name], module.rank, side).min()) for side in sides
        )
        for name, module in before.items()
        if name in after
    ]
    return 1.0 - median(smallest)


class SubspaceStopping:
    """Looks at the leading subspaces every ``subspace_window`` steps; says when they have settled.

    Costs one factored SVD of every module a look, O((d_out + d_in) R^2), and keeps the leading
    r directions of the last look, r the adapter's own rank.

    Args:
        config: its ``direction`` says which singular vectors matter.
        modules: of the temporary adapter, read at each look.
        ranks: of the real adapter, by module name.
    """

    def __init__(
        self, config: HRPConfig, modules: dict[str, LoraModule], ranks: Mapping[str, int]
    ) -> None:
        self.curve: list[tuple[int, float]] = []
        self.settled = False
        self._config = config
        self._modules = modules
        self._ranks = ranks
        self._last: Spectrum | None = None

    def update(self, step: int) -> bool:
        """Return whether preheating may stop after ``step``; looks only at the window's end."""
        if step % self._config.subspace_window:
            return False
        # An expert that no token has reached yet has no subspace to look at.
        reached = {name: module for name, module in self._modules.items() if module.is_trained()}
        if not reached:
            return False
        whole = read_spectrum(reached)
        current = Spectrum({name: whole[name].crop(self._ranks[name]) for name in whole})
        if self._last is not None:
            turn = subspace_turn(self._last, current, SIDES[self._config.direction])
            (turn,) = broadcast_object_list([turn])  # by their own processes might differ
            self.curve.append((step, turn))
            self.settled = turn < self._config.subspace_tolerance
        self._last = current
        return self.settled

    def to_dict(self) -> dict[str, Any]:
        """Return, for provenance, whether the subspaces settled, and the turn at each look."""
        return {
            "settled": self.settled,
            "turns": [{"step": step, "turn": turn} for step, turn in self.curve],
        }

    def save(self, folder: Path) -> None:
        """Write what a resumed run needs to stop at the same step; nothing before the first look.

        The folder is a spectrum of the leading directions, with the curve as its provenance.
        """
        if self._last is not None:
            Spectrum(self._last, {"turns": self.curve}).save(folder, overwrite=True)

    def load(self, folder: Path) -> None:
        """Undo `save`."""
        if folder.exists():
            self._last = Spectrum.load(folder)
            self.curve = [(int(step), float(turn)) for step, turn in self._last.provenance["turns"]]
