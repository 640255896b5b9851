"""Figures of a benchmark: differences, sweeps, loss curves, ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hrp.bench.record import Record
from hrp.bench.stats import Comparison
from hrp.bench.sweeps import minimised, scores, select
from hrp.bench.views import Analysis, setting
from hrp.report.figures import INK, colour, drawn, heat_map, plain

_MOST_LINES = 7
_MOST_POINTS = 120
_GREY = "#7d8590"
_VERDICT_COLOURS = {"better": "#009e73", "worse": "#d55e00"}


def shown_arms(analysis: Analysis) -> list[str]:
    """The best arms, as many as colours tell apart, and the control."""
    arms = [arm for arm in analysis.best if arm != analysis.control]
    return arms[:_MOST_LINES] + [analysis.control] * (analysis.control in analysis.best)


def _looks(analysis: Analysis) -> dict[str, dict[str, Any]]:
    return {
        arm: {"color": INK, "linestyle": "--"} if arm == analysis.control else colour(index)
        for index, arm in enumerate(shown_arms(analysis))
    }


def differences(analysis: Analysis) -> Figure:
    """Difference of every arm to the control with its 95 % t interval, by verdict.

    Arms far from all others, full fine-tuning say, are set at the edge with their number.
    """
    compared = [one for one in analysis.comparisons if one.verdict != "incomplete"]
    reach = _reach(np.array([end for one in compared for end in one.interval]))
    with drawn(height=1.1 + 0.24 * max(len(compared), 2)) as figure:
        axes = figure.add_subplot()
        for place, one in enumerate(compared):
            _difference(axes, place, one, reach)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlim(-reach, reach)
        axes.set_yticks(range(len(compared)), [plain(one.arm, 28) for one in compared])
        axes.set_ylim(max(len(compared), 1) - 0.4, -0.6)  # first row on top, none on the frame
        direction = "less" if analysis.minimise else "more"
        axes.set_xlabel(
            f"{plain(analysis.metric)}, minus {plain(analysis.control)} ({direction} is better)"
        )
        for verdict, shade in {**_VERDICT_COLOURS, "no significant difference": _GREY}.items():
            axes.plot([], [], "o", color=shade, label=verdict)
        figure.legend(loc="outside upper center", ncols=3, handletextpad=0.2)
        return figure


def _reach(ends: np.ndarray) -> float:
    """Half the range to show: all of it, but at most six times what half the ends lie within."""
    sizes = np.abs(ends)
    return 1.08 * float(min(sizes.max(initial=0), 6 * np.median(sizes)) if sizes.any() else 1.0)


def _difference(axes: Any, place: int, one: Comparison, reach: float) -> None:
    shade = _VERDICT_COLOURS.get(one.verdict, _GREY)
    if abs(one.difference) < reach:
        errors = np.abs(np.array(one.interval)[:, None] - one.difference)
        axes.errorbar(one.difference, place, xerr=errors, fmt="o", color=shade, capsize=2.5)
        return
    side = -1 if one.difference < 0 else 1
    axes.plot(0.97 * side * reach, place, "<" if side < 0 else ">", color=shade)
    align = "left" if side < 0 else "right"
    axes.text(
        0.92 * side * reach, place, f"{one.difference:+.4f}", ha=align, va="center", fontsize=8
    )


def sweep_curves(analysis: Analysis) -> Figure | None:
    """Mean metric over learning rates, seeds as the band from worst to best.

    The range is that in which the arms are about the control; what diverged leaves the frame.
    None where no arm was swept.
    """
    if all(len(by_rate) < 2 for by_rate in analysis.table.values()):
        return None
    rates = sorted({rate for by_rate in analysis.table.values() for rate in by_rate})
    with drawn() as figure:
        axes = figure.add_subplot()
        for arm, look in _looks(analysis).items():
            by_rate = analysis.table[arm]
            values = [list(by_rate[rate].values()) for rate in sorted(by_rate)]
            means = [float(np.mean(one)) for one in values]
            axes.plot(
                sorted(by_rate), means, marker="o", markersize=3, label=plain(arm, 24), **look
            )
            low, high = [min(one) for one in values], [max(one) for one in values]
            axes.fill_between(sorted(by_rate), low, high, color=look["color"], alpha=0.15, lw=0)
        axes.set_xscale("log")
        shown = rates[:: 1 + len(rates) // 8]
        axes.set_xticks(shown, [f"{rate:g}" for rate in shown])
        axes.minorticks_off()
        _frame_sweep(axes, analysis)
        axes.set_xlabel("learning rate")
        axes.set_ylabel(plain(analysis.metric))
        _legend(figure)
        return figure


def _frame_sweep(axes: Any, analysis: Analysis) -> None:
    means = [mean for arm in shown_arms(analysis) for mean in analysis.best[arm].sweep.values()]
    centre = float(np.median([one.mean for one in analysis.best.values()]))
    reach = 4 * float(np.median(np.abs(np.array(means) - centre)))
    low, high = axes.get_ylim()
    if reach > 0:
        axes.set_ylim(max(low, centre - reach), min(high, centre + reach))


def _legend(figure: Figure) -> None:
    figure.legend(loc="outside lower center", ncols=3)


def loss_curves(analysis: Analysis) -> Figure | None:
    """Training loss at the best rate: mean over seeds, the band from lowest to highest.

    A curve starts after the steps that its start was charged, so that at equal total cost all end
    at one place. Long curves are averaged to about a hundred points. None without any losses.
    """
    curves = {arm: _curve(analysis.records_of(arm)) for arm in shown_arms(analysis)}
    if not any(len(steps) for steps, _ in curves.values()):
        return None
    charged = analysis.view.basis == "equal total steps"
    with drawn() as figure:
        axes = figure.add_subplot()
        for arm, look in _looks(analysis).items():
            steps, losses = curves[arm]
            if not len(steps):
                continue
            if charged:
                steps = steps + analysis.records_of(arm)[0].costs.charged_steps
            axes.plot(steps, losses.mean(0), label=plain(arm, 24), linewidth=1.2, **look)
            low, high = losses.min(0), losses.max(0)
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        _crop_start(axes, [losses for _, losses in curves.values() if losses.size])
        axes.set_xlabel("step, the start's charged steps included" if charged else "step")
        axes.set_ylabel("training loss")
        _legend(figure)
        return figure


def _curve(records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Steps common to all seeds (points,) and losses (seeds, points), averaged over bins."""
    curves = [dict(record.losses) for record in records if record.losses]
    if not curves:
        return np.zeros(0), np.zeros((0, 0))
    steps = np.array(sorted(set.intersection(*map(set, curves))), dtype=float)
    losses = np.array([[curve[step] for step in steps] for curve in curves])
    bins = np.array_split(np.arange(len(steps)), min(len(steps), _MOST_POINTS))
    centres = np.array([steps[one].mean() for one in bins])
    return centres, np.stack([losses[:, one].mean(1) for one in bins], axis=1)


def _crop_start(axes: Any, curves: Sequence[np.ndarray]) -> None:
    """Leave the steep first steps out of the range; the end is what arms differ by."""
    settled = np.concatenate([losses[:, losses.shape[1] // 20 :].ravel() for losses in curves])
    settled = settled[np.isfinite(settled)]
    if settled.size:
        low, high = settled.min(), float(np.quantile(settled, 0.995))
        margin = 0.05 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)


def preheating_curves(losses: Mapping[str, Sequence[float]]) -> Figure:
    """Loss per preheating step, one line a name."""
    with drawn(height=2.8) as figure:
        axes = figure.add_subplot()
        for index, (name, values) in enumerate(losses.items()):
            steps = range(1, len(values) + 1)
            axes.plot(steps, values, label=plain(name), **colour(index))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("preheating step")
        axes.set_ylabel("training loss")
        if len(losses) > 1:
            figure.legend(loc="outside lower center", ncols=2)
        return figure


def ablation(
    records: Sequence[Record],
    metric: str,
    rows: str = "preheat_rank",
    columns: str = "preheat_steps",
) -> Figure | None:
    """Heat map of ``metric`` over two settings of one arm, each cell at its own best rate.

    None where the settings do not vary both.
    """
    held = [r for r in records if setting(r, rows) is not None and setting(r, columns) is not None]
    names = [
        sorted({str(setting(r, name)) for r in held}, key=_by_size) for name in (rows, columns)
    ]
    if min(map(len, names)) < 2:
        return None
    table = scores(held, metric, label=lambda r: f"{setting(r, rows)} {setting(r, columns)}")
    cells = {
        tuple(name.split(" ")): one.mean for name, one in select(table, minimised(metric)).items()
    }
    values = np.array([[cells.get((r, c), np.nan) for c in names[1]] for r in names[0]])
    with drawn(height=1.3 + 0.34 * len(names[0])) as figure:
        direction = "less" if minimised(metric) else "more"
        label = f"{plain(metric)} ({direction} is better)"
        axes = heat_map(figure, values, names[0], names[1], label)
        axes.set_ylabel(rows.replace("_", " "))
        axes.set_xlabel(columns.replace("_", " "))
        return figure


def _by_size(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text
