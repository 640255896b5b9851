"""The report: one self-contained page from records and spectra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from hrp.report.html import Html, Part, figures, folded, joined, parts_page, table, tag
from hrp.report.spectrum_page import spectrum_parts
from hrp.report.spectrum_views import preheating_curves
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench.comparisons import Analysis, analyse, views
from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import CONTROL
from hrp_lab.report import ablation_maps, plots, provenance
from hrp_lab.report.arm_table import arms_table
from hrp_lab.report.cost_tables import cost_table
from hrp_lab.report.reading import sentences

_LONG = 24  # rows that a page shows unasked, where they matter less
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
    """HTML of the report.

    Args:
        records: of any number of experiments and tasks.
        spectra_by_name: shown after the records; alignments are those with the first.
        title: of the page.
        metric: to judge by; by default each view's `hrp_lab.bench.comparisons.main_metric`.
        control: arm that all others are compared with.

    Raises:
        ValueError: neither records nor spectra.
    """
    spectra_by_name = spectra_by_name or {}
    if not records and not spectra_by_name:
        raise ValueError("`records` or `spectra_by_name` must have something to show, got neither")
    parts = [
        *_views(records, metric, control),
        *_failures(records),
        *spectrum_parts(spectra_by_name),
        *_provenance(records),
    ]
    return parts_page(title, _LEAD, parts)


def _views(records: Sequence[Record], metric: str | None, control: str) -> Iterator[Part]:
    for place, view in enumerate(views(records, control)):
        analysis = analyse(view, metric, control)
        costs = cost_table(analysis)
        content = [
            _reading(analysis),
            *_ablations(place, analysis),
            table(arms_table(analysis)),
            table(provenance.origins_table(view.records)),
            figures(f"view{place}", _view_drawings(analysis)),
            tag("h3", "Costs"),
            table(costs) if len(costs.rows) <= _LONG else folded("Costs of all arms", costs),
            folded("Records behind the table", provenance.sources_table(analysis)),
        ]
        yield view.title, joined(content)


def _view_drawings(analysis: Analysis) -> Iterator[tuple[Figure | None, str]]:
    if any(one.judged for one in analysis.comparisons):
        yield plots.differences(analysis), f"Difference to {analysis.control}, {plots.INTERVALS}."
    some = " The best arms only." if len(plots.shown_arms(analysis)) < len(analysis.best) else ""
    yield plots.sweep_curves(analysis), f"Learning-rate sweeps: {plots.POINTS}.{some}"
    yield plots.loss_curves(analysis), f"Training loss: mean, and range over seeds.{some}"
    heated = {
        arm: analysis.records_of(arm)[0].preheat_losses
        for arm in analysis.best
        if analysis.records_of(arm)[0].preheat_losses
    }
    if heated:
        chosen = dict(list(heated.items())[:6])
        yield preheating_curves(chosen), "Loss while preheating, first seed."


def _reading(analysis: Analysis) -> Html:
    return tag("ul", *(tag("li", line) for line in sentences(analysis)))


def _ablations(place: int, analysis: Analysis) -> Iterator[Html]:
    maps = ablation_maps.heat_maps(analysis).items()
    if maps:
        yield tag("h3", "Ablation")
        drawings = [(one, f"{ablation_maps.caption(analysis, arm)}.") for arm, one in maps]
        yield figures(f"ablation{place}", drawings)
    if levels := ablation_maps.levels_table(analysis):
        yield table(levels)


def _failures(records: Sequence[Record]) -> Iterator[Part]:
    if failed := provenance.failures_table(records):
        yield "Runs without a result", table(failed)


def _provenance(records: Sequence[Record]) -> Iterator[Part]:
    if records:
        yield "Provenance", table(provenance.provenance_table(records))
