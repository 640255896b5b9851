"""Records as a Markdown page with figures beside it, such as ``docs/results.md``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from hrp.bench.record import Record, write_whole
from hrp.bench.stats import CONTROL
from hrp.bench.views import Analysis, analyse, main_metric, views
from hrp.report import plots, tables
from hrp.report.figures import save
from hrp.report.reading import sentences


def write_page(
    records: Sequence[Record],
    out: Path,
    title: str = "Results",
    metric: str | None = None,
    control: str = CONTROL,
) -> int:
    """Write the page ``out`` and its figures in the folder ``figures`` beside it.

    Every table is followed by the run ids behind it, so that each number can be traced.

    Returns:
        The number of figures.

    Raises:
        ValueError: no records, or none with metrics.
    """
    if not records:
        raise ValueError("`records` must not be empty")
    figures: list[Path] = []
    text = [f"# {title}", "", *_ablations(records, out, metric, figures)]
    for view in views(records, control):
        analysis = analyse(view, metric, control)
        text += [f"## {view.experiment}: {view.task}, {view.basis} ({view.steps})", ""]
        text += [
            *(f"- {line}" for line in sentences(analysis)),
            "",
            tables.arms_table(analysis).markdown(),
        ]
        text += _figures(analysis, out, figures)
        text += ["### Costs", "", tables.cost_table(analysis).markdown()]
        text += _folded("Records behind the table", tables.sources_table(analysis).markdown())
    if failed := tables.failures_table(records):
        text += ["## Runs without a result", "", failed.markdown()]
    text += ["## Provenance", "", tables.provenance_table(records).markdown()]
    write_whole(out, "\n".join(text) + "\n")
    return len(figures)


def _figures(analysis: Analysis, out: Path, figures: list[Path]) -> Iterator[str]:
    view = analysis.view
    stem = f"{view.experiment}-{view.task}-{view.basis}-{view.steps}"
    if analysis.comparisons:
        caption = f"Difference to {analysis.control}, 95 % t intervals"
        yield _figure(plots.differences(analysis), out, f"{stem}-differences", caption, figures)
    for drawing, name, caption in (
        (plots.sweep_curves(analysis), "sweep", "Learning-rate sweeps: mean, range over seeds"),
        (plots.loss_curves(analysis), "losses", "Training loss: mean, range over seeds"),
    ):
        if drawing is not None:
            yield _figure(drawing, out, f"{stem}-{name}", caption, figures)


def _ablations(
    records: Sequence[Record], out: Path, metric: str | None, figures: list[Path]
) -> Iterator[str]:
    for view in views(records):
        judged = metric or main_metric(view.records)
        for arm in sorted({one.arm for one in view.records}):
            drawing = plots.ablation([one for one in view.records if one.arm == arm], judged)
            if drawing is not None:
                caption = (
                    f"{view.experiment}, {view.basis} ({view.steps}), {arm}: {judged} over "
                    "preheating rank and steps, each cell at its best learning rate"
                )
                name = f"{view.experiment}-{view.basis}-{view.steps}-{arm}-ablation"
                yield _figure(drawing, out, name, caption, figures)


def _figure(drawing: Figure, out: Path, name: str, caption: str, figures: list[Path]) -> str:
    path = out.parent / "figures" / f"{re.sub(r'[^A-Za-z0-9+-]+', '-', name)}.png"
    figures.append(save(drawing, path))
    return f"![{caption}](figures/{path.name})\n\n{caption}.\n"


def _folded(summary: str, content: str) -> list[str]:
    return ["<details>", f"<summary>{summary}</summary>", "", content, "</details>", ""]
