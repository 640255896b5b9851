"""Shows spectra in tables, figures and pages: effective ranks, energy, alignment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hrp.report.blocks import FigureBlock, Section, TableBlock
from hrp.report.figures import colour, drawn, heat_map, plain
from hrp.report.shares import SHOWN_RANKS, energy, loss_share, share_at
from hrp.report.table import DASH, Table, number
from hrp.spectra.module_spectrum import ModuleSpectrum, Side
from hrp.spectra.spectrum import Spectrum

SIDES: tuple[Side, ...] = ("U", "Vh")
_SIDE_NAMES = {"U": "outputs", "Vh": "inputs"}
_KINDS = ("entropy", "stable", "energy")
_ALL_KINDS = (*_KINDS, "loss")
ALIGNMENT_RANK = 8
"""Rank at which the spectra of a page are aligned."""


def _effective_rank(module: ModuleSpectrum, kind: Any) -> float:
    # A module whose update stayed zero has no effective rank; without a metric it has none by it.
    defined = module.S.max() > 0 and (kind != "loss" or module.has_metric)
    return module.effective_rank(kind) if defined else float("nan")


def module_facts(spectrum: Spectrum) -> dict[str, dict[str, Any]]:
    """Return shape, rank, effective ranks and kept shares by module, as JSON types (NaN as None).

    "energy" and "loss_share" hold what ranks keep of the plain energy and in the metric of the
    loss.
    """
    return {
        name: {
            "shape": list(module.shape),
            "rank": module.rank,
            "scaling": module.scaling,
            "effective_rank": {k: _or_none(_effective_rank(module, k)) for k in _ALL_KINDS},
            "energy": {str(r): _or_none(share_at(energy(module), r)) for r in SHOWN_RANKS},
            "loss_share": {str(r): _or_none(share_at(loss_share(module), r)) for r in SHOWN_RANKS},
        }
        for name, module in spectrum.items()
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value


def spectrum_table(spectrum: Spectrum) -> Table:
    """Return a row for each module: shape, rank, effective ranks, what few directions keep."""
    rows = []
    for name, module in spectrum.items():
        shape = f"{module.shape[0]} x {module.shape[1]}"
        ranks = [number(_effective_rank(module, kind), 1) for kind in _KINDS]
        curves = (energy(module), loss_share(module))
        shares = [number(share_at(curve, r), 3) for curve in curves for r in SHOWN_RANKS]
        rows.append((name, shape, str(module.rank), *ranks, *shares))
    names = ("module", "shape", "rank", "eff. rank", "stable rank", "90 % rank")
    header = (*names, *(f"{letter}({rank})" for letter in "EL" for rank in SHOWN_RANKS))
    caption = (
        "Shape (d_out x d_in) and preheated rank; effective rank by entropy, stable rank, "
        "directions that hold 90 % of the energy; E(r): share of the energy in r directions; "
        "L(r): share that rank r keeps in the metric of the loss, a dash where it was not observed."
    )
    return Table(caption, header, tuple(rows))


def spectrum_facts(spectrum: Spectrum) -> Table:
    """Return the provenance of a spectrum as a table, without the flags of the command line."""
    facts: dict[str, str] = {"modules": str(len(spectrum))}
    for key, value in spectrum.provenance.items():
        if key in ("losses", "settings") or value in (None, [], {}):
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {setting}" for name, setting in value.items())
        facts[key.replace("_", " ")] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return Table("Provenance of the spectrum.", ("fact", "value"), tuple(facts.items()))


def layer_and_kind(name: str) -> tuple[str, str]:
    """Split a module's name into its layer, the first number, and its kind, the rest.

    >>> layer_and_kind("model.layers.11.self_attn.q_proj"), layer_and_kind("lm_head")
    (('11', 'model.layers.self_attn.q_proj'), ('—', 'lm_head'))
    """
    parts = name.split(".")
    layer = next((part for part in parts if part.isdecimal()), DASH)
    return layer, ".".join(part for part in parts if not part.isdecimal())


def _short_kinds(kinds: list[str]) -> dict[str, str]:
    """Leave out the leading parts that all kinds share."""
    if len(kinds) < 2:
        return {kind: kind.rpartition(".")[2] for kind in kinds}
    heads = [kind.split(".")[:-1] for kind in kinds]
    shared = 0
    while all(len(head) > shared and head[shared] == heads[0][shared] for head in heads):
        shared += 1
    return {kind: ".".join(kind.split(".")[shared:]) for kind in kinds}


def _grid(values: Mapping[str, float]) -> tuple[np.ndarray, list[str], list[str]]:
    """Arrange the mean values as (layers, kinds), and return the names of both."""
    cells: dict[tuple[str, str], list[float]] = {}
    for name, value in values.items():
        cells.setdefault(layer_and_kind(name), []).append(value)
    layers = sorted({layer for layer, _ in cells}, key=lambda x: (x == DASH, x.zfill(9)))
    kinds = sorted({kind for _, kind in cells})
    grid = np.full((len(layers), len(kinds)), np.nan)
    for (layer, kind), numbers in cells.items():
        grid[layers.index(layer), kinds.index(kind)] = np.mean(numbers)
    short = _short_kinds(kinds)
    return grid, layers, [short[kind] for kind in kinds]


def module_map(values: Mapping[str, float], label: str, title: str = "") -> Figure:
    """Draw a heat map of a number a module, layer by module kind."""
    grid, layers, kinds = _grid(values)
    with drawn(height=1.5 + 0.22 * min(max(len(layers), 3), 40)) as figure:
        axes = heat_map(figure, grid, layers, kinds, label)
        axes.set_title(title)
        axes.set_ylabel("layer")
        return figure


def effective_rank_map(spectrum: Spectrum) -> Figure:
    """Draw a heat map of the effective rank (entropy), layer by module kind."""
    values = {name: _effective_rank(module, "entropy") for name, module in spectrum.items()}
    return module_map(values, "effective rank")


def energy_curves(spectrum: Spectrum) -> Figure:
    """Draw the share of the energy in the leading directions, median and range over layers."""
    by_kind: dict[str, list[np.ndarray]] = {}
    for name, module in spectrum.items():
        by_kind.setdefault(layer_and_kind(name)[1], []).append(energy(module))
    short = _short_kinds(sorted(by_kind))
    with drawn() as figure:
        axes = figure.add_subplot()
        for index, kind in enumerate(sorted(by_kind)):
            least = min(map(len, by_kind[kind]))
            curves = np.array([curve[:least] for curve in by_kind[kind]])
            points, look = np.arange(1, least + 1), colour(index)
            axes.plot(points, np.median(curves, 0), label=plain(short[kind], 24), **look)
            low, high = curves.min(0), curves.max(0)
            axes.fill_between(points, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("leading directions")
        axes.set_ylabel("share of the energy")
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def common_rank(spectrum: Spectrum, other: Spectrum, rank: int) -> int:
    """Return the largest rank up to ``rank`` that every module of both spectra has."""
    return min(rank, *(module.rank for module in (*spectrum.values(), *other.values())))


def alignment(spectrum: Spectrum, other: Spectrum, rank: int, side: Side) -> dict[str, float]:
    """Return the mean squared cosine between the leading subspaces of ``rank``, by module.

    It is 1 where they coincide; ``rank / dimension`` is expected of a random subspace.
    """
    cosines = spectrum.subspace_alignment(other, rank, side)
    return {name: float(values.square().mean()) for name, values in cosines.items()}


def alignment_map(spectrum: Spectrum, other: Spectrum, rank: int, side: Side) -> Figure:
    """Draw a heat map of `alignment`, layer by module kind."""
    title = f"{_SIDE_NAMES[side]} ({side}), rank {rank}"
    return module_map(alignment(spectrum, other, rank, side), "alignment", title)


def spectrum_figures(
    spectrum: Spectrum, reference: tuple[str, Spectrum] | None, rank: int
) -> Iterator[FigureBlock]:
    """Yield all figures of a spectrum, and how far it agrees with a named ``reference``.

    Alignments are drawn at ``rank``, or at the largest rank that both have. Raises ``ValueError``
    where the two differ in their modules.
    """
    ranks = "Effective rank (entropy) of each update"
    yield FigureBlock(effective_rank_map(spectrum), "effective_rank", ranks)
    yield FigureBlock(energy_curves(spectrum), "energy", "Energy: median, and range over layers")
    if reference is None:
        return
    name, first = reference
    rank = common_rank(first, spectrum, rank)
    words = f"Alignment with {name}: mean squared cosine of the principal angles at rank {rank}"
    outputs, inputs = (alignment_map(first, spectrum, rank, side) for side in SIDES)
    yield FigureBlock(outputs, "alignment_outputs", f"{words}, outputs (direction B)")
    yield FigureBlock(inputs, "alignment_inputs", f"{words}, inputs (direction A)")


def spectrum_sections(spectra: Mapping[str, Spectrum]) -> Iterator[Section]:
    """Yield a section for each spectrum; those of the first one's shapes are aligned with it."""
    first = next(iter(spectra.items()), None)
    for name, spectrum in spectra.items():
        alike = first and name != first[0] and _shapes(spectrum) == _shapes(first[1])
        figures = spectrum_figures(spectrum, first if alike else None, ALIGNMENT_RANK)
        modules = TableBlock(spectrum_table(spectrum), f"All {len(spectrum)} modules")
        yield Section(f"Spectrum {name}", (TableBlock(spectrum_facts(spectrum)), *figures, modules))


def _shapes(spectrum: Spectrum) -> dict[str, tuple[int, int]]:
    return {name: module.shape for name, module in spectrum.items()}
