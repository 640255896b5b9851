"""Writes records and spectra as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hrp.report.html import page
from hrp.report.spectrum_views import spectrum_sections
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import CONTROL
from hrp_lab.report.sections import sections

GENERATOR = "hrp-lab bench report"
_LEAD = (
    "Every initialiser at its best learning rate, over seeds, its preheating charged. All tables "
    "and figures come from the records and spectra named below; nothing on this page is loaded "
    "from elsewhere."
)


def report_page(
    records: Sequence[Record],
    spectra_by_name: Mapping[str, Spectrum] | None = None,
    title: str = "HRP benchmark",
    metric: str | None = None,
    control: str = CONTROL,
) -> str:
    """Return the HTML of the report: records as `sections` arranges them, then the spectra.

    Raises:
        ValueError: there are neither records nor spectra.
        RecordError: two records are of the same run.
    """
    spectra_by_name = spectra_by_name or {}
    if not records and not spectra_by_name:
        raise ValueError("`records` or `spectra_by_name` must have something to show, got neither")
    shown = [*sections(records, metric, control), *spectrum_sections(spectra_by_name)]
    return page(title, _LEAD, shown, GENERATOR)
