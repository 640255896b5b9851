"""Tables and figures of spectra: effective ranks, energy, alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hrp.report.figures import INK, colour, drawn, heat_map, plain
from hrp.report.table import Table, number
from hrp.spectra.module_spectrum import ModuleSpectrum, Side
from hrp.spectra.spectrum import Spectrum

ENERGY_RANKS = (4, 8, 16, 32)
_KINDS = ("entropy", "stable", "energy")
_NO_LAYER = "—"


def energy(module: ModuleSpectrum) -> np.ndarray:
    """Share of ``sum(S^2)`` in the leading 1, 2, ... directions, (rank,); NaN for a zero update."""
    held = np.cumsum(module.S.double().numpy() ** 2)
    return held / held[-1] if held[-1] > 0 else np.full(len(held), np.nan)


def energy_at(module: ModuleSpectrum, rank: int) -> float:
    """Share of the energy in the ``rank`` leading directions, all there are if fewer."""
    return float(energy(module)[min(rank, module.rank) - 1])


def _effective_rank(module: ModuleSpectrum, kind: Any) -> float:
    # A module whose update stayed zero has no effective rank; the others have.
    return module.effective_rank(kind) if module.S.max() > 0 else float("nan")


def module_facts(spectrum: Spectrum) -> dict[str, dict[str, Any]]:
    """Shape, rank, effective ranks and energy by module, as JSON types (NaN as None)."""
    return {
        name: {
            "shape": list(module.shape),
            "rank": module.rank,
            "scaling": module.scaling,
            "effective_rank": {kind: _or_none(_effective_rank(module, kind)) for kind in _KINDS},
            "energy": {str(rank): _or_none(energy_at(module, rank)) for rank in ENERGY_RANKS},
        }
        for name, module in spectrum.items()
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def spectrum_table(spectrum: Spectrum) -> Table:
    """One row a module: shape, rank, effective ranks, energy in the leading directions."""
    rows = []
    for name, module in spectrum.items():
        shape = f"{module.shape[0]} x {module.shape[1]}"
        ranks = [number(_effective_rank(module, kind), 1) for kind in _KINDS]
        shares = [number(energy_at(module, rank), 3) for rank in ENERGY_RANKS]
        rows.append((name, shape, str(module.rank), *ranks, *shares))
    names = ("module", "shape", "rank", "eff. rank", "stable rank", "90 % rank")
    header = (*names, *(f"E({rank})" for rank in ENERGY_RANKS))
    caption = (
        "Shape (d_out x d_in) and preheated rank; effective rank by entropy, stable rank, "
        "directions that hold 90 % of the energy; E(r): share of the energy in r directions."
    )
    return Table(caption, header, tuple(rows))


def place(name: str) -> tuple[str, str]:
    """Layer and kind of a module: the first number in its name, and the rest without numbers.

    >>> place("model.layers.11.self_attn.q_proj"), place("lm_head")
    (('11', 'model.layers.self_attn.q_proj'), ('—', 'lm_head'))
    """
    parts = name.split(".")
    layer = next((part for part in parts if part.isdecimal()), _NO_LAYER)
    return layer, ".".join(part for part in parts if not part.isdecimal())


def _short_kinds(kinds: list[str]) -> dict[str, str]:
    """Kinds without the leading parts that all share."""
    if len(kinds) < 2:
        return {kind: kind.rpartition(".")[2] for kind in kinds}
    heads = [kind.split(".")[:-1] for kind in kinds]
    shared = 0
    while all(len(head) > shared and head[shared] == heads[0][shared] for head in heads):
        shared += 1
    return {kind: ".".join(kind.split(".")[shared:]) for kind in kinds}


def _grid(values: Mapping[str, float]) -> tuple[np.ndarray, list[str], list[str]]:
    """Mean value over layer and kind: (layers, kinds), and their names."""
    cells: dict[tuple[str, str], list[float]] = {}
    for name, value in values.items():
        cells.setdefault(place(name), []).append(value)
    layers = sorted({layer for layer, _ in cells}, key=lambda x: (x == _NO_LAYER, x.zfill(9)))
    kinds = sorted({kind for _, kind in cells})
    grid = np.full((len(layers), len(kinds)), np.nan)
    for (layer, kind), found in cells.items():
        grid[layers.index(layer), kinds.index(kind)] = np.mean(found)
    short = _short_kinds(kinds)
    return grid, layers, [short[kind] for kind in kinds]


def _map(values: Mapping[str, float], label: str) -> Figure:
    grid, layers, kinds = _grid(values)
    with drawn(height=1.5 + 0.22 * min(max(len(layers), 3), 40)) as figure:
        axes = heat_map(figure, grid, layers, kinds, label)
        axes.set_ylabel("layer")
        return figure


def effective_rank_map(spectrum: Spectrum) -> Figure:
    """Heat map of the effective rank (entropy), layer by module kind."""
    values = {name: _effective_rank(module, "entropy") for name, module in spectrum.items()}
    return _map(values, "effective rank")


def energy_curves(spectrum: Spectrum) -> Figure:
    """Share of the energy in the leading directions: median and range over layers, by kind."""
    by_kind: dict[str, list[np.ndarray]] = {}
    for name, module in spectrum.items():
        by_kind.setdefault(place(name)[1], []).append(energy(module))
    short = _short_kinds(sorted(by_kind))
    with drawn() as figure:
        axes = figure.add_subplot()
        for index, kind in enumerate(sorted(by_kind)):
            least = min(map(len, by_kind[kind]))
            curves = np.array([curve[:least] for curve in by_kind[kind]])
            ranks, look = np.arange(1, least + 1), colour(index)
            axes.plot(ranks, np.median(curves, 0), label=plain(short[kind], 24), **look)
            low, high = curves.min(0), curves.max(0)
            axes.fill_between(ranks, low, high, color=look["color"], alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("leading directions")
        axes.set_ylabel("share of the energy")
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def common_rank(spectrum: Spectrum, other: Spectrum, rank: int) -> int:
    """The largest rank up to ``rank`` that every module of both spectra has."""
    return min(rank, *(module.rank for one in (spectrum, other) for module in one.values()))


def alignment(spectrum: Spectrum, other: Spectrum, rank: int, side: Side) -> dict[str, float]:
    """Mean squared cosine between the leading ``rank``-dimensional subspaces, by module.

    1 where they coincide; ``rank / dimension`` is expected of a random subspace.
    """
    cosines = spectrum.subspace_alignment(other, rank, side)
    return {name: float(one.square().mean()) for name, one in cosines.items()}


def alignment_map(spectrum: Spectrum, other: Spectrum, rank: int, side: Side) -> Figure:
    """Heat map of `alignment`, layer by module kind."""
    what = {"U": "outputs, U", "Vh": "inputs, Vh"}[side]
    return _map(alignment(spectrum, other, rank, side), f"alignment at rank {rank} ({what})")


def alignment_curves(spectrum: Spectrum, other: Spectrum, rank: int) -> Figure:
    """Cosines of the principal angles at ``rank``: median and range over modules, both sides."""
    with drawn(height=2.9) as figure:
        axes = figure.add_subplot()
        sides: tuple[tuple[Side, str], ...] = (("U", "outputs (U)"), ("Vh", "inputs (Vh)"))
        for index, (side, name) in enumerate(sides):
            cosines = spectrum.subspace_alignment(other, rank, side).values()
            curves = np.array([one.double().numpy() for one in cosines])
            angles, look = np.arange(1, rank + 1), colour(index)
            axes.plot(angles, np.median(curves, 0), marker="o", markersize=3, label=name, **look)
            low, high = curves.min(0), curves.max(0)
            axes.fill_between(angles, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.axhline(1, color=INK, linewidth=0.6)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("principal angle, smallest first")
        axes.set_ylabel("cosine")
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def preheating_curves(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Loss per preheating step, one line a name."""
    with drawn(height=2.8) as figure:
        axes = figure.add_subplot()
        for index, (name, values) in enumerate(losses.items()):
            steps = range(1, len(values) + 1)
            axes.plot(steps, values, label=plain(name), **colour(index))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("preheating step")
        axes.set_ylabel("training loss")
        if len(losses) > 1:
            figure.legend(loc="outside lower center", ncols=2)
        return figure
