"""Records as a Markdown page with figures beside it, such as ``docs/results.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from hrp.files import write_text
from hrp.report.figures import save
from hrp.report.table import Table
from hrp_lab.bench.comparisons import Analysis, View, analyse, views
from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import CONTROL
from hrp_lab.report import ablation_maps, plots, provenance
from hrp_lab.report.arm_table import arms_table
from hrp_lab.report.cost_tables import cost_table
from hrp_lab.report.reading import sentences

_LONG = 40  # rows; longer tables are folded


def write_page(
    records: Sequence[Record],
    out: Path,
    title: str = "Results",
    metric: str | None = None,
    control: str = CONTROL,
    reading: str = "",
) -> int:
    """Write the page ``out`` and its figures in the folder ``figures`` beside it.

    Every table is followed by the run ids behind it, so that each number can be traced. ``reading``
    is what a person makes of them, in Markdown; it stands first.

    Returns:
        The number of figures.

    Raises:
        ValueError: no records, or none with metrics.
    """
    if not records:
        raise ValueError("`records` must not be empty")
    figures: list[Path] = []
    text = [f"# {title}", ""]
    if reading:
        text += [reading.strip(), ""]
    for view in views(records, control):
        analysis = analyse(view, metric, control)
        text += [f"## {view.title}", ""]
        text += [*(f"- {line}" for line in sentences(analysis)), ""]
        text += _ablations(analysis, out, figures)
        text += _folded_if_long("All arms", arms_table(analysis))
        text += [provenance.origins_table(view.records).markdown()]
        text += _figures(analysis, out, figures)
        text += ["### Costs", "", *_folded_if_long("Costs of all arms", cost_table(analysis))]
        text += _folded("Records behind the table", provenance.sources_table(analysis).markdown())
    if failed := provenance.failures_table(records):
        text += ["## Runs without a result", "", failed.markdown()]
    text += ["## Provenance", "", provenance.provenance_table(records).markdown()]
    write_text(out, "\n".join(text) + "\n")
    return len(figures)


def _figures(analysis: Analysis, out: Path, figures: list[Path]) -> Iterator[str]:
    view = analysis.view
    stem = _stem(view)
    if any(one.judged for one in analysis.comparisons):
        caption = f"Difference to {analysis.control}, {plots.INTERVALS}"
        yield _figure(plots.differences(analysis), out, f"{stem}-differences", caption, figures)
    for drawing, name, caption in (
        (plots.sweep_curves(analysis), "sweep", f"Learning-rate sweeps: {plots.POINTS}"),
        (plots.loss_curves(analysis), "losses", "Training loss: mean, range over seeds"),
    ):
        if drawing is not None:
            yield _figure(drawing, out, f"{stem}-{name}", caption, figures)


def _stem(view: View) -> str:
    name = f"{view.experiment}-{view.task}-{view.basis}-{view.steps}"
    return f"{name}-{view.settings}" if view.settings else name


def _ablations(analysis: Analysis, out: Path, figures: list[Path]) -> Iterator[str]:
    for arm, drawing in ablation_maps.heat_maps(analysis).items():
        name = f"{_stem(analysis.view)}-{arm}-ablation"
        yield _figure(drawing, out, name, ablation_maps.caption(analysis, arm), figures)
    if levels := ablation_maps.levels_table(analysis):
        yield levels.markdown()


def _figure(drawing: Figure, out: Path, name: str, caption: str, figures: list[Path]) -> str:
    path = out.parent / "figures" / f"{re.sub(r'[^A-Za-z0-9+-]+', '-', name)}.png"
    figures.append(save(drawing, path))
    return f"![{caption}](figures/{path.name})\n\n{caption}.\n"


def _folded_if_long(summary: str, table: Table) -> list[str]:
    text = table.markdown()
    return [text] if len(table.rows) <= _LONG else _folded(summary, text)


def _folded(summary: str, content: str) -> list[str]:
    return ["<details>", f"<summary>{summary}</summary>", "", content, "</details>", ""]
