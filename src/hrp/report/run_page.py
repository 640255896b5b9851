"""The page of ``hrp report``: what runs did, with no script and nothing loaded."""

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
from hrp.spectra.spectrum import Spectrum

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
    own = (_run_section(name, run, len(runs) == 1) for name, run in runs.items())
    sections = [*_loss_section(runs), *filter(_has_content, own), *spectrum_sections(spectra)]
    return page(title, _LEAD, sections, GENERATOR)


def _has_content(section: Section) -> bool:
    return bool(section.blocks)


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
            label = plain(curve.name) or "fine-tuning"
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


def _run_section(name: str, run: RunFolder, alone: bool) -> Section:
    blocks: list[Block] = []
    if run.arms:
        blocks.append(TableBlock(_arm_table(run)))
    if run.samples:
        blocks += [Heading("Answers before and after"), TableBlock(_sample_table(run))]
    if run.spectrum is not None:
        blocks += _kept_blocks(run, run.spectrum)
    if run.ranks or run.arms or any(row[2] for row in run.costs):
        caption = "What preheating took, beside fine-tuning; memory is known on a GPU only."
        rows = tuple((n, a or DASH, b or DASH) for n, a, b in run.costs)
        header = ("cost", "preheating", "fine-tuning")
        blocks += [Heading("Cost"), TableBlock(Table(caption, header, rows))]
    blocks += _settings_blocks(run)
    return Section("The run" if alone else f"Run {name}", tuple(blocks))


def _kept_blocks(run: RunFolder, spectrum: Spectrum) -> Iterator[Block]:
    """Yield what the cut kept of each module's update, and what ranks would keep."""
    advice = recommend(spectrum)
    if advice is None:
        return
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
        return
    of = "in the metric of the loss" if in_loss else "of the plain energy"
    spread = sorted({ranks[name] for name in values})
    at = f"rank {spread[0]}" if len(spread) == 1 else f"ranks {spread[0]} to {spread[-1]}"
    verb = "kept" if run.ranks else "would keep"
    finite = [value for value in values.values() if np.isfinite(value)]
    median = number(float(np.median(finite)) if finite else float("nan"), 3)
    line = f"The cut to {at} {verb} a share of {median} {of} in the median module."
    yield Heading("What the cut kept" if run.ranks else "What a cut would keep")
    yield Sentences((line, f"{advice.sentence[0].upper()}{advice.sentence[1:]}."))
    caption = f"Share of the preheated update {of} that {at} {verb}, by layer and kind"
    yield FigureBlock(module_map(values, "share kept"), "kept", caption)


def _settings_blocks(run: RunFolder) -> Iterator[Block]:
    given = {name: run.settings[name] for name in _FIRST if run.settings.get(name) is not None}
    lora = {name: run.lora_config[name] for name in _LORA if name in run.lora_config}
    if run.arms:
        given = dict(run.settings)
    if not given and not lora:
        return
    yield Heading("Settings")
    yield TableBlock(_pairs("Settings that are looked at first.", lora | given))
    rest = {name: value for name, value in run.settings.items() if name not in given}
    if rest:
        yield TableBlock(_pairs("As recorded.", rest), f"The other {len(rest)} settings")


def _pairs(caption: str, facts: Mapping[str, Any]) -> Table:
    rows = tuple((name, _shown(value)) for name, value in facts.items())
    return Table(caption, ("setting", "value"), rows)


def _shown(value: object) -> str:
    if value is None:
        return DASH
    return ", ".join(sorted(map(str, value))) if isinstance(value, list) else str(value)


def _arm_table(run: RunFolder) -> Table:
    """Return a row a run of the demo."""
    header = ("arm", "seed", "preheating steps", "steps", "test loss", "exact answers", "seconds")
    rows = tuple(
        (
            *(str(arm.get(name, DASH)) for name in ("arm", "seed", "preheat_steps", "steps")),
            *(_number(arm.get("test_loss"), 4), _number(arm.get("exact"), 3)),
            _number(arm.get("seconds"), 1),
        )
        for arm in run.arms
    )
    caption = "All runs. Loss in nats a token of the answer, exact answers as a share, on problems "
    return Table(caption + "not trained on; seconds count the preheating.", header, rows)


def _number(value: object, digits: int) -> str:
    return number(float(value), digits) if isinstance(value, int | float) else DASH


def _sample_table(run: RunFolder) -> Table:
    header = ("question", "before", "after", "right answer")
    keys = ("question", "before", "after", "reference")
    rows = tuple(tuple(str(sample.get(key, DASH)) for key in keys) for sample in run.samples)
    caption = (
        "The first test problems, not chosen by their answers: greedy answers of the base model "
        "and of the saved adapter."
    )
    return Table(caption, header, rows)
