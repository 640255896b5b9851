"""Writes the page of ``hrp report``: what runs did, with no script and nothing loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hrp.report.blocks import Block, FigureBlock, Heading, Section, Sentences, TableBlock
from hrp.report.figures import INK, colour, drawn, plain
from hrp.report.html import page
from hrp.report.run_folder import Curve, RunFolder
from hrp.report.shares import energy, loss_share, recommend, share_at
from hrp.report.spectrum_views import module_map, spectrum_sections
from hrp.report.table import DASH, Table, number

GENERATOR = "hrp report"
_LEAD = "Made from the folders named below; nothing on this page is loaded from elsewhere."
_WINDOW = 0.05  # share of a long curve's points that its running mean is over
_LONG = 60  # points from which on a curve is smoothed
# The settings that are looked at first, of all that a run records.
_FIRST = (
    *("model_name_or_path", "dataset_path", "dataset_name", "task", "direction", "scale"),
    *("truncation", "keep", "preheat_rank", "preheat_steps", "preheat_learning_rate"),
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "dtype", "bf16"),
)
_LORA = ("r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "target_modules")


def run_page(runs: Mapping[str, RunFolder], title: str = "HRP run") -> str:
    """Return the HTML page of ``runs`` by name; raises ``ValueError`` if there are none."""
    if not runs:
        raise ValueError("`runs` must have something to show, got none")
    spectra = {name: run.spectrum for name, run in runs.items() if run.spectrum is not None}
    sections = [
        *_loss_section(runs),
        *_results_sections(runs),
        *_kept_section(runs),
        *_settings_section(runs),
        *spectrum_sections(spectra),
    ]
    return page(title, _LEAD, sections, GENERATOR)


def _loss_section(runs: Mapping[str, RunFolder]) -> Iterator[Section]:
    """Yield the section of all curves on one axis, with a name each where there are several."""
    curves = [
        replace(curve, name=", ".join(filter(None, (name if len(runs) > 1 else "", curve.name))))
        for name, run in runs.items()
        for curve in run.curves
    ]
    if curves:
        caption = (
            "Training loss by optimizer step, preheating included: dotted while preheating, whose "
            "curve ends where fine-tuning begins"
        )
        if any(_smoothed(curve) for curve in curves):
            caption += f"; long curves are running means over {100 * _WINDOW:.0f} % of their points"
        yield Section("Loss", (FigureBlock(loss_figure(curves), "loss", caption),))


def _smoothed(curve: Curve) -> bool:
    return max(len(curve.preheating), len(curve.fine_tuning)) >= _LONG


def loss_figure(curves: Sequence[Curve]) -> Figure:
    """Draw the losses of preheating, dotted, and of fine-tuning after it, on one axis of steps."""
    with drawn() as figure:
        axes = figure.add_subplot()
        shared = Counter(curve.preheating for curve in curves if curve.preheating)
        for index, curve in enumerate(curves):
            spent, shade = len(curve.preheating), colour(index)["color"]
            if shared[curve.preheating] == 1:
                axes.plot(range(1, spent + 1), _running_mean(curve.preheating), ":", color=shade)
            label = plain(curve.name) or ("fine-tuning" if curve.fine_tuning else None)
            steps = [spent + step for step, _ in curve.fine_tuning]
            losses = _running_mean([loss for _, loss in curve.fine_tuning])
            marker: dict[str, Any] = {"marker": "o", "markersize": 3} if len(steps) < 3 else {}
            axes.plot(steps, losses, label=label, **colour(index), **marker)
        # Arms of one seed share their preheating, which then has no arm's colour.
        for preheating in (losses for losses, sharers in shared.items() if sharers > 1):
            axes.plot(range(1, len(preheating) + 1), _running_mean(preheating), ":", color=INK)
        if shared:
            axes.plot([], [], ":", color=INK, label="preheating")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("optimizer step, preheating included")
        axes.set_ylabel("training loss")
        figure.legend(loc="outside lower center", ncols=2)
        return figure


def _running_mean(values: Any) -> np.ndarray:
    """Return the mean over a centred window, narrower at both ends; short curves as they are."""
    points = np.asarray(values, dtype=float)
    half = int(_WINDOW * len(points) / 2) if len(points) >= _LONG else 0
    windows = (points[max(0, i - half) : i + half + 1] for i in range(len(points)))
    return np.array([window.mean() for window in windows])


def _results_sections(runs: Mapping[str, RunFolder]) -> Iterator[Section]:
    """Yield the losses and answers of each demo."""
    for name, run in runs.items():
        blocks: list[Block] = [TableBlock(_arm_table(run))] if run.arms else []
        if run.samples:
            blocks += [Heading("Answers before and after"), TableBlock(_sample_table(run))]
        if blocks:
            yield Section(f"Results of {name}" if len(runs) > 1 else "Results", tuple(blocks))


def _kept_section(runs: Mapping[str, RunFolder]) -> Iterator[Section]:
    """Yield what the cut kept of each module's update, the maps of several runs side by side."""
    many = len(runs) > 1
    kept = [said for name, run in runs.items() if (said := _kept(run, f"{name}: " * many))]
    if kept:
        title = "What the cut kept" if any(r.ranks for r in runs.values()) else "What a cut keeps"
        yield Section(title, (*(said for said, _ in kept), *(figure for _, figure in kept)))


def _kept(run: RunFolder, of_run: str) -> tuple[Sentences, FigureBlock] | None:
    """Return what the cut kept of each module's update, and what ranks would keep."""
    spectrum = run.spectrum
    advice = recommend(spectrum) if spectrum is not None else None
    if spectrum is None or advice is None:
        return None
    settings = run.settings | spectrum.provenance.get("config", {})
    truncation = run.settings.get("truncation") or settings.get("truncation", "frobenius")
    in_loss = advice.in_loss and truncation == "loss"
    # A spectrum alone has not been cut: it shows what the recommended rank would keep.
    ranks = {name: run.ranks.get(name, 0 if run.ranks else advice.rank) for name in spectrum}
    values = {
        name: share_at(loss_share(module) if in_loss else energy(module), ranks[name])
        for name, module in spectrum.items()
        if ranks[name]
    }
    if not values:
        return None
    of = "in the metric of the loss" if in_loss else "of the plain energy"
    spread = sorted({ranks[name] for name in values})
    at = f"rank {spread[0]}" if len(spread) == 1 else f"ranks {spread[0]} to {spread[-1]}"
    verb = "kept" if run.ranks else "would keep"
    finite = [value for value in values.values() if np.isfinite(value)]
    median = number(float(np.median(finite)) if finite else float("nan"), 3)
    line = f"{of_run}The cut to {at} {verb} a share of {median} {of} in the median module."
    caption = f"{of_run}Share of the preheated update {of} that {at} {verb}, by layer and kind"
    advised = f"{of_run}{advice.sentence[0].upper()}{advice.sentence[1:]}."
    figure = FigureBlock(module_map(values, "share kept"), "kept", caption)
    return Sentences((line, advised)), figure


def _settings_section(runs: Mapping[str, RunFolder]) -> Iterator[Section]:
    """Yield costs and settings, a column a run; the many other settings are folded."""
    many = len(runs) > 1
    blocks: list[Block] = []
    if any(tuning for run in runs.values() for _, _, tuning in run.costs):
        phases = [
            (f"{name}, " * many + phase, {row[0]: row[column] for row in run.costs})
            for name, run in runs.items()
            for column, phase in ((1, "preheating"), (2, "fine-tuning"))
        ]
        caption = "What preheating took, beside fine-tuning; memory is known on a GPU only."
        blocks.append(TableBlock(_columns(caption, "cost", phases)))
    first = {name: _first_settings(run) for name, run in runs.items()}
    if any(first.values()):
        values = [(name if many else "value", given) for name, given in first.items()]
        blocks.append(TableBlock(_columns("Settings that are looked at first.", "setting", values)))
    for name, run in runs.items():
        rest = {key: v for key, v in run.settings.items() if key not in first[name]}
        if rest:
            summary = f"The other {len(rest)} settings" + f" of {name}" * many
            table = _columns("As recorded.", "setting", [("value", rest)])
            blocks.append(TableBlock(table, summary))
    if blocks:
        yield Section("Cost and settings", tuple(blocks))


def _first_settings(run: RunFolder) -> dict[str, Any]:
    given = {name: run.settings[name] for name in _FIRST if run.settings.get(name) is not None}
    lora = {name: run.lora_config[name] for name in _LORA if name in run.lora_config}
    return lora | (dict(run.settings) if run.arms else given)


def _columns(caption: str, corner: str, columns: Sequence[tuple[str, Mapping[str, Any]]]) -> Table:
    """Return a row for each name in any of the columns, each a header with values by name."""
    names = dict.fromkeys(name for _, values in columns for name in values)
    rows = tuple((n, *(_shown(values.get(n)) for _, values in columns)) for n in names)
    return Table(caption, (corner, *(header for header, _ in columns)), rows)


def _shown(value: object) -> str:
    if value is None or value == "":
        return DASH
    return ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)


def _arm_table(run: RunFolder) -> Table:
    """Return a row a run of the demo."""
    names = ("arm", "seed", "preheat_steps", "steps", "test_loss", "exact", "seconds")
    caption = "All runs. Loss in nats a token of the answer, exact answers as a share, on problems "
    return _rows(caption + "not trained on; seconds count the preheating.", names, run.arms)


def _sample_table(run: RunFolder) -> Table:
    caption = (
        "The first test problems, not chosen by their answers: greedy answers of the base model "
        "and of the saved adapter."
    )
    return _rows(caption, ("question", "before", "after", "reference"), run.samples)


def _rows(caption: str, names: tuple[str, ...], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the values that have these names, numbers to four digits."""

    def shown(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    header = tuple(name.replace("_", " ") for name in names)
    return Table(caption, header, tuple(tuple(shown(r.get(n, DASH)) for n in names) for r in rows))
