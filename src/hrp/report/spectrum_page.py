"""The page of ``hrp report``: what spectra hold, with no script and nothing loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from matplotlib.figure import Figure

from hrp.report import spectrum_views as views
from hrp.report.html import Part, figures, folded, joined, parts_page, table
from hrp.report.table import DASH, Table
from hrp.spectra.spectrum import Spectrum

ALIGNMENT_RANK = 8
_LEAD = "Made from the spectra named below; nothing on this page is loaded from elsewhere."


def spectrum_page(spectra: Mapping[str, Spectrum], title: str = "Spectra") -> str:
    """Return the HTML page of ``spectra`` by name; raises ``ValueError`` if there are none."""
    if not spectra:
        raise ValueError("`spectra` must have something to show, got none")
    return parts_page(title, _LEAD, spectrum_parts(spectra))


def spectrum_parts(by_name: Mapping[str, Spectrum]) -> Iterator[Part]:
    """Heading and content for each spectrum; alignments are those with the first."""
    first = next(iter(by_name.items()), None)
    for place, (name, spectrum) in enumerate(by_name.items()):
        drawings: list[tuple[Figure | None, str]] = [
            (views.effective_rank_map(spectrum), "Effective rank (entropy) of each update."),
            (views.energy_curves(spectrum), "Energy: median, and range over layers."),
        ]
        if losses := spectrum.provenance.get("losses"):
            drawings.append((views.preheating_curves({name: losses}), "Loss while preheating."))
        content: list[str] = [table(spectrum_facts(spectrum))]
        if first and place and _shapes(spectrum) == _shapes(first[1]):
            drawings += _alignment_drawings(first[0], first[1], spectrum)
        content.append(figures(f"spectrum{place}", drawings))
        modules = views.spectrum_table(spectrum)
        content.append(folded(f"All {len(spectrum)} modules", modules))
        yield f"Spectrum {name}", joined(content)


def _shapes(spectrum: Spectrum) -> dict[str, tuple[int, int]]:
    return {name: module.shape for name, module in spectrum.items()}


def _alignment_drawings(
    name: str, first: Spectrum, other: Spectrum
) -> Iterator[tuple[Figure | None, str]]:
    rank = views.common_rank(first, other, ALIGNMENT_RANK)
    words = f"Alignment with {name}: mean squared cosine of the principal angles at rank {rank}"
    yield views.alignment_map(first, other, rank, "U"), f"{words}, outputs (direction B)."
    yield views.alignment_map(first, other, rank, "Vh"), f"{words}, inputs (direction A)."
    yield views.alignment_curves(first, other, rank), f"Principal angles to {name}."


def spectrum_facts(spectrum: Spectrum) -> Table:
    """Provenance of a spectrum as a table; settings that are objects are spelt out."""
    facts: dict[str, str] = {"modules": str(len(spectrum))}
    for key, value in spectrum.provenance.items():
        if key == "losses":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {setting}" for name, setting in value.items())
        facts[key.replace("_", " ")] = DASH if value is None else str(value)
    return Table("Provenance of the spectrum.", ("fact", "value"), tuple(facts.items()))
