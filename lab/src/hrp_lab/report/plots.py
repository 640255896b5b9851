"""Draws the figures of a benchmark: differences, sweeps, loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hrp.report.figures import INK, colour, drawn, plain
from hrp_lab.bench.comparisons import Analysis
from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import Comparison
from hrp_lab.bench.sweeps import FORGETTING, Best

_MOST_LINES = 7
_SHORT_NAME = 15  # letters, of which a legend has room for three columns
_NAME = 30  # letters of an arm that are shown
_MOST_POINTS = 120
_GREY = "#7d8590"
_VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00"}

INTERVALS = (
    "95 % t intervals, each for its comparison alone; colours are the corrected verdicts; arms "
    "that could not be tested are left out"
)
POINTS = (
    "filled points are means over all of an arm's seeds, the band their range; hollow points have "
    "fewer seeds; triangles point to what is beyond the frame"
)


def _looks(analysis: Analysis) -> dict[str, dict[str, Any]]:
    """Return how the best arms are drawn, as many as colours tell apart, and last the control."""
    arms = [arm for arm in analysis.best if arm != analysis.control][:_MOST_LINES]
    looks: dict[str, dict[str, Any]] = {arm: colour(index) for index, arm in enumerate(arms)}
    if analysis.control in analysis.best:
        looks[analysis.control] = {"color": INK, "linestyle": "--"}
    return looks


def differences(analysis: Analysis) -> Figure:
    """Draw the difference of every arm to the control with its 95 % t interval, by verdict.

    Arms far from all others, full fine-tuning say, are set at the edge with their number.
    """
    compared = [comparison for comparison in analysis.comparisons if comparison.judged]
    reach = _reach(np.array([comparison.interval for comparison in compared]))
    with drawn(height=1.1 + 0.24 * max(len(compared), 2)) as figure:
        axes = figure.add_subplot()
        for row, comparison in enumerate(compared):
            _difference(axes, row, comparison, reach)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(-reach, reach)
        axes.xaxis.set_major_locator(MaxNLocator(6, symmetric=True))
        names = [plain(comparison.arm, _NAME) for comparison in compared]
        axes.set_yticks(range(len(compared)), names)
        axes.set_ylim(max(len(compared), 1) - 0.4, -0.6)  # first row on top, none on the frame
        difference = f"{plain(analysis.metric)}, minus {plain(analysis.control)}"
        axes.set_xlabel(judged_by(difference, analysis.sense, 45))
        for verdict, shade in {**_VERDICT_COLOURS, "no significant difference": _GREY}.items():
            axes.plot([], [], "o", color=shade, label=verdict)
        figure.legend(loc="outside upper center", ncols=3, handletextpad=0.2)
        return figure


def judged_by(metric: str, sense: str, longest: int) -> str:
    """Return a metric and which way it is better, in two lines if over ``longest`` letters.

    >>> judged_by("eval_loss", "less is better", 30)
    'eval_loss (less is better)'
    """
    space = " " if len(f"{metric} ({sense})") <= longest else "\n"
    return f"{metric}{space}({sense})"


def _reach(ends: np.ndarray) -> float:
    """Return half the range to show: all, but at most six times what half the ends lie within."""
    sizes = np.abs(ends)
    return 1.08 * float(min(sizes.max(initial=0), 6 * np.median(sizes)) if sizes.any() else 1.0)


def _difference(axes: Any, row: int, comparison: Comparison, reach: float) -> None:
    difference = comparison.difference
    shade = _VERDICT_COLOURS.get(comparison.verdict, _GREY)
    if abs(difference) < reach:
        errors = np.abs(np.array(comparison.interval)[:, None] - difference)
        axes.errorbar(difference, row, xerr=errors, fmt="o", color=shade, capsize=2.5)
        return
    side = -1 if difference < 0 else 1
    axes.plot(0.97 * side * reach, row, "<" if side < 0 else ">", color=shade)
    align = "left" if side < 0 else "right"
    text = f"{difference:+.4f}"
    axes.text(0.92 * side * reach, row, text, ha=align, va="center", fontsize=8)


def trade_off(analysis: Analysis) -> Figure | None:
    """Draw each arm's gain over the control against what it forgets, means and sd over seeds.

    The best corner is the upper left one. Returns None unless the control's records and those of
    another arm have `FORGETTING`, or where the control has no results.
    """
    looks = _looks(analysis)
    forgotten = {arm: np.array(analysis.values_of(arm, FORGETTING)) for arm in looks}
    forgotten = {arm: values for arm, values in forgotten.items() if len(values)}
    if analysis.control not in forgotten or len(forgotten) < 2:
        return None
    sign = -1 if analysis.minimise else 1
    level = analysis.best[analysis.control].mean
    with drawn() as figure:
        axes = figure.add_subplot()
        for arm, values in forgotten.items():
            best = analysis.best[arm]
            axes.errorbar(
                values.mean(), sign * (best.mean - level), fmt="o", capsize=2.5,
                xerr=np.std(values, ddof=1) if len(values) > 1 else None,
                yerr=best.spread if len(best.values) > 1 else None,
                color=looks[arm]["color"], label=plain(arm, _NAME),
            )  # fmt: skip
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xlabel("forgetting: rise of the loss on other text, nats a token")
        axes.set_ylabel(f"gain in {plain(analysis.metric)}\nover {plain(analysis.control)}")
        _legend(figure)
        return figure


def sweep_curves(analysis: Analysis) -> Figure | None:
    """Draw the mean metric over learning rates; hollow points have fewer seeds than other rates.

    The band, from the worst seed to the best, is there only between filled points. The frame is
    that in which the best rates lie; triangles on its edge point to what is beyond, with the mean
    where it is an arm's best. Returns None where no arm was swept.
    """
    if all(len(best.by_rate) < 2 for best in analysis.best.values()):
        return None
    with drawn() as figure:
        axes = figure.add_subplot()
        frame, looks = _sweep_frame(analysis), _looks(analysis)
        for arm, look in looks.items():
            _sweep(axes, analysis.best[arm], frame, look)
        axes.set_ylim(*frame)
        axes.set_xscale("log")
        rates = _apart(sorted({rate for arm in looks for rate in analysis.best[arm].by_rate}))
        axes.set_xticks(rates, list(map(power, rates)))
        axes.minorticks_off()
        axes.set_xlabel("learning rate")
        axes.set_ylabel(plain(analysis.metric))
        _legend(figure)
        return figure


def _sweep(axes: Any, best: Best, frame: tuple[float, float], look: Mapping[str, Any]) -> None:
    rates, shade = sorted(best.by_rate), look["color"]
    values = [list(best.by_rate[rate].values()) for rate in rates]
    means = np.array([np.mean(scores) for scores in values])
    whole = np.isin(rates, best.complete)
    axes.plot(rates, means, linewidth=1.2, label=plain(best.arm, _NAME), **look)
    low, high = ([end(scores) for scores in values] for end in (min, max))
    axes.fill_between(rates, low, high, where=whole, color=shade, alpha=0.15, lw=0)
    marks = np.select([means < frame[0], means > frame[1]], ["v", "^"], "o")
    margin = 0.025 * (frame[1] - frame[0])
    heights = np.clip(means, frame[0] + margin, frame[1] - margin)
    points = zip(rates, means, heights, whole, marks, strict=True)
    for rate, mean, height, full, mark in points:
        face = shade if full else "none"
        axes.scatter(rate, height, s=18, c=face, marker=mark, edgecolors=shade, lw=1, zorder=3)
        if mark != "o" and rate == best.learning_rate:
            axes.annotate(f"{mean:.4f}", (rate, height), (5, 0), textcoords="offset points",
                          va="center", fontsize=8, color=shade)  # fmt: skip


def _sweep_frame(analysis: Analysis) -> tuple[float, float]:
    """Return the range of scores at and about the best rates; far-off arms are left out."""
    shown = [analysis.best[arm] for arm in _looks(analysis)]
    away = np.abs([best.mean - np.median([other.mean for other in shown]) for best in shown])
    limit = max(8 * float(np.median(away)), 1e-12)
    near = [best for best, distance in zip(shown, away, strict=True)
            if distance <= limit or best.arm == analysis.control]  # fmt: skip
    held = [score for best in near for score in best.values.values()]
    tried = [score for best in shown for by in best.by_rate.values() for score in by.values()]
    centre = float(np.median(held))
    reach = 5 * float(np.median(np.abs(np.array(tried) - centre)))
    low = min(*held, max(min(tried), centre - reach))
    high = max(*held, min(max(tried), centre + reach))
    margin = 0.06 * (high - low) or 0.1
    return low - margin, high + margin


def power(rate: float) -> str:
    """Return a rate as a multiple of a power of ten, for matplotlib to set.

    >>> power(4.5e-3), power(1e-3)
    ('$4.5\\\\cdot10^{-3}$', '$10^{-3}$')
    """
    digits, exponent = f"{rate:.2e}".split("e")
    multiple = "" if float(digits) == 1 else rf"{float(digits):g}\cdot"
    return f"${multiple}10^{{{int(exponent)}}}$"


def _apart(rates: Sequence[float]) -> list[float]:
    """Return those of ascending rates whose names do not touch on a logarithmic axis."""
    least = np.log(rates[-1] / rates[0]) / 6
    kept = list(rates[:1])
    for rate in rates[1:]:
        if np.log(rate / kept[-1]) >= least:
            kept.append(rate)
    return kept


def _legend(figure: Figure) -> None:
    """Put the legend below the axes, in as many columns as the figure is wide enough for."""
    names = [name for axes in figure.axes for name in axes.get_legend_handles_labels()[1]]
    ncols = 3 if max(map(len, names), default=0) <= _SHORT_NAME else 2
    figure.legend(loc="outside lower center", ncols=ncols)


def loss_curves(analysis: Analysis) -> Figure | None:
    """Draw the training loss at the best rate, mean over seeds, with a band from lowest to highest.

    A curve starts after the steps that its start was charged, so that at equal total cost all end
    at the same step. Long curves are averaged to about a hundred points. Returns None without any
    losses.
    """
    curves = {arm: _curve(analysis.records_of(arm)) for arm in _looks(analysis)}
    if not any(len(steps) for steps, _ in curves.values()):
        return None
    charged = analysis.view.basis == "equal total steps"
    with drawn() as figure:
        axes = figure.add_subplot()
        for arms in _coinciding(curves):
            arm, look = arms[0], _looks(analysis)[arms[0]]
            steps, losses = curves[arm]
            if charged:
                steps = steps + analysis.records_of(arm)[0].costs.charged_steps
            label = plain(arm, _NAME) + f" and {len(arms) - 1} alike" * (len(arms) > 1)
            axes.plot(steps, losses.mean(0), label=label, linewidth=1.2, **look)
            low, high = losses.min(0), losses.max(0)
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        _crop_start(axes, [losses for _, losses in curves.values() if losses.size])
        axes.set_xlabel("step, the start's charged steps included" if charged else "step")
        axes.set_ylabel("training loss")
        _legend(figure)
        return figure


def _coinciding(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[list[str]]:
    """Group the arms whose curves are the same, so that each is drawn once; leave out empty ones.

    The control leads its group.
    """
    groups: dict[bytes, list[str]] = {}
    for arm, (steps, losses) in reversed(list(curves.items())):  # the control is last
        if len(steps):
            groups.setdefault(steps.tobytes() + losses.tobytes(), []).append(arm)
    return list(groups.values())[::-1]


def _curve(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Return steps common to all seeds (points,) and losses (seeds, points), averaged over bins."""
    curves = [dict(record.losses) for record in records if record.losses]
    if not curves:
        return np.zeros(0), np.zeros((0, 0))
    steps = np.array(sorted(set.intersection(*map(set, curves))), dtype=float)
    losses = np.array([[curve[step] for step in steps] for curve in curves])
    bins = np.array_split(np.arange(len(steps)), min(len(steps), _MOST_POINTS))
    centres = np.array([steps[indices].mean() for indices in bins])
    return centres, np.stack([losses[:, indices].mean(1) for indices in bins], axis=1)


def _crop_start(axes: Any, curves: Sequence[np.ndarray]) -> None:
    """Leave the steep first steps out of the range; arms differ at the end."""
    settled = np.concatenate([losses[:, losses.shape[1] // 20 :].ravel() for losses in curves])
    settled = settled[np.isfinite(settled)]
    if settled.size:
        low, high = settled.min(), float(np.quantile(settled, 0.995))
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
