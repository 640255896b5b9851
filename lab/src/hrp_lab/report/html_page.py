"""The report: one self-contained page from records and spectra."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from matplotlib.figure import Figure

from hrp.bench.record import Record
from hrp.bench.stats import CONTROL
from hrp.bench.views import Analysis, analyse, views
from hrp.report import ablations, plots, provenance, spectra, tables
from hrp.report.costs import cost_table
from hrp.report.figures import to_svg
from hrp.report.html import Html, figure, joined, page, section, table, tag
from hrp.report.reading import sentences
from hrp.report.tables import DASH
from hrp.spectrum import Spectrum

ALIGNMENT_RANK = 8
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
        metric: to judge by; by default each view's `hrp.bench.views.main_metric`.
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
        *_spectra(spectra_by_name),
        *_provenance(records),
    ]
    sections = [
        section(f"part-{place}", heading, content) for place, (heading, content) in enumerate(parts)
    ]
    links = [(f"part-{place}", heading) for place, (heading, _) in enumerate(parts)]
    return page(title, _LEAD, links, *sections)


Part = tuple[str, Html]


def _figures(prefix: str, drawings: Iterable[tuple[Figure | None, str]]) -> Html:
    made = [
        figure(to_svg(drawing, f"{prefix}-{place}", caption), caption)
        for place, (drawing, caption) in enumerate(drawings)
        if drawing is not None
    ]
    return tag("div", *made, class_="figures")


def _views(records: Sequence[Record], metric: str | None, control: str) -> Iterator[Part]:
    for place, view in enumerate(views(records, control)):
        analysis = analyse(view, metric, control)
        costs = cost_table(analysis)
        content = [
            _reading(analysis),
            *_ablations(place, analysis),
            table(tables.arms_table(analysis)),
            table(provenance.origins_table(view.records)),
            _figures(f"view{place}", _view_drawings(analysis)),
            tag("h3", "Costs"),
            table(costs) if len(costs.rows) <= _LONG else _folded("Costs of all arms", costs),
            _folded("Records behind the table", provenance.sources_table(analysis)),
        ]
        yield view.title, joined(content)


def _folded(summary: str, content: tables.Table) -> Html:
    return tag("details", tag("summary", summary), table(content))


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
        yield plots.preheating_curves(chosen), "Loss while preheating, first seed."


def _reading(analysis: Analysis) -> Html:
    return tag("ul", *(tag("li", line) for line in sentences(analysis)))


def _ablations(place: int, analysis: Analysis) -> Iterator[Html]:
    maps = ablations.heat_maps(analysis).items()
    if maps:
        yield tag("h3", "Ablation")
        drawings = [(one, f"{ablations.caption(analysis, arm)}.") for arm, one in maps]
        yield _figures(f"ablation{place}", drawings)
    if levels := ablations.levels_table(analysis):
        yield table(levels)


def _failures(records: Sequence[Record]) -> Iterator[Part]:
    if failed := provenance.failures_table(records):
        yield "Runs without a result", table(failed)


def _spectra(by_name: Mapping[str, Spectrum]) -> Iterator[Part]:
    first = next(iter(by_name.items()), None)
    for place, (name, spectrum) in enumerate(by_name.items()):
        drawings: list[tuple[Figure | None, str]] = [
            (spectra.effective_rank_map(spectrum), "Effective rank (entropy) of each update."),
            (spectra.energy_curves(spectrum), "Energy: median, and range over layers."),
        ]
        if losses := spectrum.provenance.get("losses"):
            drawings.append((plots.preheating_curves({name: losses}), "Loss while preheating."))
        content: list[str] = [table(spectrum_facts(spectrum))]
        if first and place and _shapes(spectrum) == _shapes(first[1]):
            drawings += _alignment_drawings(first[0], first[1], spectrum)
        content.append(_figures(f"spectrum{place}", drawings))
        modules = spectra.spectrum_table(spectrum)
        content.append(_folded(f"All {len(spectrum)} modules", modules))
        yield f"Spectrum {name}", joined(content)


def _shapes(spectrum: Spectrum) -> dict[str, tuple[int, int]]:
    return {name: module.shape for name, module in spectrum.items()}


def _alignment_drawings(
    name: str, first: Spectrum, other: Spectrum
) -> Iterator[tuple[Figure | None, str]]:
    rank = spectra.common_rank(first, other, ALIGNMENT_RANK)
    words = f"Alignment with {name}: mean squared cosine of the principal angles at rank {rank}"
    yield spectra.alignment_map(first, other, rank, "U"), f"{words}, outputs (direction B)."
    yield spectra.alignment_map(first, other, rank, "Vh"), f"{words}, inputs (direction A)."
    yield spectra.alignment_curves(first, other, rank), f"Principal angles to {name}."


def spectrum_facts(spectrum: Spectrum) -> tables.Table:
    """Provenance of a spectrum as a table; settings that are objects are spelt out."""
    facts: dict[str, str] = {"modules": str(len(spectrum))}
    for key, value in spectrum.provenance.items():
        if key == "losses":
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {setting}" for name, setting in value.items())
        facts[key.replace("_", " ")] = DASH if value is None else str(value)
    return tables.Table("Provenance of the spectrum.", ("fact", "value"), tuple(facts.items()))


def _provenance(records: Sequence[Record]) -> Iterator[Part]:
    if records:
        yield "Provenance", table(provenance.provenance_table(records))
