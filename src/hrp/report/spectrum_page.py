"""Makes the sections of a page that show what spectra hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hrp.report.blocks import Section, TableBlock
from hrp.report.spectrum_views import spectrum_facts, spectrum_figures, spectrum_table
from hrp.spectra.spectrum import Spectrum

ALIGNMENT_RANK = 8


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
