"""Makes a benchmark's report: one list of sections, whatever format it is rendered to; as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hrp.report.blocks import Block, FigureBlock, Heading, Section, Sentences, TableBlock
from hrp.report.html import page
from hrp.report.spectrum_views import spectrum_sections
from hrp.report.table import Table
from hrp.spectra.spectrum import Spectrum
from hrp_lab.bench.comparisons import Analysis, analyse, shown_arm, superseded, views
from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import CONTROL
from hrp_lab.report import ablation_maps, plots, provenance
from hrp_lab.report.arm_table import arms_table, cost_table

GENERATOR = "hrp-lab bench report"
_LEAD = (
    "Every initialiser at its best learning rate, over seeds, its preheating charged. All tables "
    "and figures come from the records and spectra named below; nothing on this page is loaded "
    "from elsewhere."
)
_NAMED = 16  # arms spelt out in a sentence
_FEW = 4  # variants of an arm that are spelt out; more of them are counted
_VERDICTS = {
    "better": "significantly better than {}",
    "worse": "significantly worse than {}",
    "no significant difference": "no significant difference to {}",
    "incomplete": "seeds are missing, no verdict",
}
_LONG = 40  # rows; longer tables are folded


def sections(
    records: Sequence[Record], metric: str | None = None, control: str = CONTROL
) -> list[Section]:
    """Return a section for each view of ``records``, for runs without a result, for provenance.

    ``metric`` is by default each view's `hrp_lab.bench.comparisons.main_metric`. Raises
    `RecordError` where two records are of the same run.
    """
    parts = [
        Section(view.title, tuple(_comparison(analyse(view, metric, control))))
        for view in views(records, control)
    ]
    if failures := provenance.failures_table(records):
        parts.append(Section("Runs without a result", (TableBlock(failures),)))
    if records:
        parts.append(Section("Provenance", (TableBlock(provenance.provenance_table(records)),)))
    return parts


def report_page(
    records: Sequence[Record],
    spectra_by_name: Mapping[str, Spectrum],
    title: str = "HRP benchmark",
    metric: str | None = None,
    control: str = CONTROL,
) -> str:
    """Return the sections of records, then those of spectra, as one self-contained HTML page."""
    shown = [*sections(records, metric, control), *spectrum_sections(spectra_by_name)]
    return page(title, _LEAD, shown, GENERATOR)


def _comparison(analysis: Analysis) -> Iterator[Block]:
    view = analysis.view
    name = f"{view.experiment}-{view.task}-{view.basis}-{view.steps}"
    name += f"-{view.settings}" if view.settings else ""
    yield Sentences(tuple(sentences(analysis)))
    for arm, figure in ablation_maps.heat_maps(analysis).items():
        caption = ablation_maps.caption(analysis, arm)
        yield FigureBlock(figure, f"{name}-{arm}-ablation", caption)
    if levels := ablation_maps.levels_table(analysis):
        yield TableBlock(levels)
    yield _folded_if_long(arms_table(analysis), "All arms")
    yield TableBlock(provenance.origins_table(view.records))
    if any(comparison.judged for comparison in analysis.comparisons):
        caption = f"Difference to {analysis.control}, {plots.INTERVALS}"
        yield FigureBlock(plots.differences(analysis), f"{name}-differences", caption)
    if trade := plots.trade_off(analysis):
        caption = "Gain against forgetting: mean ± sd over seeds, each arm at its best rate"
        yield FigureBlock(trade, f"{name}-trade-off", caption)
    if sweeps := plots.sweep_curves(analysis):
        yield FigureBlock(sweeps, f"{name}-sweep", f"Learning-rate sweeps: {plots.POINTS}")
    if losses := plots.loss_curves(analysis):
        yield FigureBlock(losses, f"{name}-losses", "Training loss: mean, range over seeds")
    yield Heading("Costs")
    yield _folded_if_long(cost_table(analysis), "Costs of all arms")
    yield TableBlock(provenance.sources_table(analysis), "Records behind the table")


def _folded_if_long(table: Table, summary: str) -> TableBlock:
    return TableBlock(table, summary if len(table.rows) > _LONG else "")


def sentences(analysis: Analysis) -> Iterator[str]:
    """Yield the arms by verdict, and what is missing before a verdict means much."""
    ahead = {
        arm: rate for arm, best in analysis.best.items() if (rate := best.overtaken_by) is not None
    }
    if (rate := ahead.pop(analysis.control, None)) is not None:
        yield (
            f"NO VERDICTS: the best learning rate of {analysis.control}, the control, is not "
            f"settled: {rate:g} does better on the seeds that it has; run it on all."
        )
    for verdict, words in _VERDICTS.items():
        if arms := [other.arm for other in analysis.comparisons if other.verdict == verdict]:
            yield f"{_some(analysis, arms)}: {words.format(analysis.control)}."
    if not analysis.comparisons:
        yield f"No comparison: {analysis.control} or all others have no results here."
    if ahead:
        yield (
            f"{_some(analysis, list(ahead))}: learning rate not settled, no verdict; another rate "
            "does better on fewer seeds: run it on all."
        )
    bests = analysis.best
    if edges := [arm for arm, best in bests.items() if best.on_edge and len(best.grid) > 1]:
        yield f"{_some(analysis, edges)}: best at an end of the sweep; it should be widened."
    if unswept := [arm for arm, best in bests.items() if len(best.grid) == 1]:
        named = "all arms" if len(unswept) == len(bests) else _some(analysis, unswept)
        yield f"{named}: one learning rate only, not swept; nothing is said of their best."
    if old := [arm for arm in bests if superseded(analysis.records_of(arm)[0])]:
        yield (
            f"{_some(analysis, old)}: superseded, the arm of that name does otherwise today. Here "
            "the preheated update was cut by the plain SVD, nothing else was kept, and DoRA was "
            "preheated as LoRA."
        )


def _some(analysis: Analysis, labels: Sequence[str]) -> str:
    """Join the names; an arm of many variants is named once, with their number."""
    arms = {label: shown_arm(analysis.records_of(label)[0]) for label in analysis.best}
    variants, named = Counter(arms.values()), Counter(arms[label] for label in labels)
    names = [
        label
        if variants[arms[label]] <= _FEW
        else f"{arms[label]} ({named[arms[label]]} of {variants[arms[label]]} variants)"
        for label in labels
    ]
    names = list(dict.fromkeys(names))
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
