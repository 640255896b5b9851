"""Draws the figures of the lab; the only file of `hrp_lab.theory` that imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hrp.files import write_file
from hrp_lab.theory.figure1 import EXCESS, PANELS, Figure1
from hrp_lab.theory.problem import SIDES
from hrp_lab.theory.sweep import Sweep
from hrp_lab.theory.truncation_sweep import WEIGHTS, TruncationSweep

_INK = "#76808c"  # can be read on white and on the near-black of the site's dark theme
# Okabe and Ito's colours, told apart by colour-blind readers; dashes tell the lines apart in grey.
_GREY, _ORANGE, _BLUE, _RED, _GREEN = "#999999", "#e69f00", "#0072b2", "#d55e00", "#009e73"
_DASHES = ("-", "--", ":", "-.")
_COLOURS = {"A": _BLUE, "B": _RED}
_ARMS: dict[str, dict[str, Any]] = {
    "gaussian": {"color": _GREY, "label": "Gaussian"},
    "orthogonal": {"color": _ORANGE, "label": "orthogonal", "linestyle": "--"},
    "HRP A": {"color": _BLUE, "label": "HRP, direction A"},
    "HRP B": {"color": _RED, "label": "HRP, direction B (ours)"},
    "target": {"color": _INK, "label": "target's own directions", "linestyle": ":"},
}
_CUTS: dict[str, dict[str, Any]] = {
    "plain": {"color": _GREY, "label": "cut by the plain SVD"},
    "metric": {"color": _RED, "label": "cut in the metric of the loss"},
    "optimum": {"color": _INK, "label": "best of rank $r$", "linestyle": ":"},
    "preheated": {"color": _BLUE, "label": "before the cut, rank $R$", "linestyle": "--"},
}
_LOWEST = 1e-4
_STYLE = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _INK,
    "grid.alpha": 0.3,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    "legend.frameon": False,
    "lines.linewidth": 1.5,
}


def _panels(height: float, **shared: Any) -> tuple[Figure, Any, Any]:
    """Return a figure of text width with two panels side by side."""
    figure = Figure(figsize=(6.6, height), layout="constrained")
    return (figure, *figure.subplots(1, 2, **shared))


def _legend_below(axes: Any, **look: Any) -> None:
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, **look)


@mpl.rc_context(_STYLE)
def draw_figure1(result: Figure1) -> Figure:
    """Draw the excess loss L(t) - L*: its mean, and the 10th to 90th percentile of the draws."""
    figure, left, right = _panels(3.3, sharey=True)
    end, goal = result.config.end_time, EXCESS * result.optimum
    times = result.times[:-1]  # the last one is far to the right of the figure
    for axes, panel in zip((left, right), PANELS, strict=True):
        for arm, look in _ARMS.items():
            excess = np.maximum(result.losses[panel, arm][:, :-1] - result.optimum, 1e-16)
            axes.plot(times, excess.mean(0), zorder=3, **look)
            _band(axes, times, excess, look["color"])
        axes.axhline(goal, color=_GREEN, linewidth=0.9)
        axes.set_title(f"{panel} LoRA", fontsize=9)
        axes.set_xlabel("fine-tuning time $t$ (gradient flow)")
        axes.set_yscale("log")
        axes.set_ylim(_LOWEST, 2)
        axes.set_xlim(0, end)
    left.set_ylabel(f"excess loss $L(t) - L^*$,  $L^* = {result.optimum:g}$")
    left.text(0.98 * end, 1.15 * goal, "1 % of $L^*$", color=_GREEN, ha="right")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _band(axes: Any, x: Any, draws: np.ndarray, colour: str) -> None:
    """Shade the 10th to 90th percentile of ``draws``, which are the first axis."""
    low, high = np.percentile(draws, [10, 90], axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


@mpl.rc_context(_STYLE)
def draw_sweep(result: Sweep) -> Figure:
    """Draw the final loss against preheat rank R at a few K (left), and the other way (right)."""
    figure, left, right = _panels(3.9, sharey=True)
    ranks, steps, limits = result.config.preheat_ranks, result.config.preheat_steps, result.limits()
    for direction in SIDES:
        for dashes, K in zip(_DASHES, _spread(steps, 3), strict=False):
            rows = result.losses(direction, preheat_steps=K)
            look = {"color": _COLOURS[direction], "linestyle": dashes}
            label = f"direction {direction}, $K = {K}$"
            _means(left, ranks, rows, 1, marker="o", markersize=2.2, label=label, **look)
        for dashes, R in zip(_DASHES, _spread(ranks, 4), strict=False):
            means = [row["mean"] for row in result.losses(direction, preheat_rank=R)]
            look = {"color": _COLOURS[direction], "linestyle": dashes}
            right.plot(steps, means, label=f"direction {direction}, $R = {R}$", **look)
    chord = {"color": _GREEN, "linewidth": 1, "label": "bound on A at small $K$ (P8)"}
    left.plot(ranks, limits["chord"], **chord)
    left.set_xlabel("preheat rank $R$")
    right.set_xlabel("preheating steps $K$")
    right.set_xscale("log")
    for axes in (left, right):
        axes.axhline(limits["random"], color=_GREY, linewidth=0.9, linestyle="--")
        axes.axhline(limits["optimum"], color=_INK, linewidth=0.9, linestyle=":")
        _legend_below(axes, handlelength=3.2)
    left.set_ylabel(f"final loss, asymmetric LoRA, $r = {result.config.rank}$")
    left.text(ranks[-1], limits["random"], "random start (T1)", ha="right", va="bottom")
    below = {"textcoords": "offset points", "xycoords": ("axes fraction", "data")}
    left.annotate("optimum", (0, limits["optimum"]), (4, -9), **below)
    left.margins(y=0.1)
    return figure


def _spread(values: tuple[int, ...], most: int) -> list[int]:
    """Return at most ``most`` of the values, first and last among them: more lines run together."""
    indices = np.linspace(0, len(values) - 1, most).round().astype(int)
    return [values[index] for index in np.unique(indices)]


def _means(axes: Any, x: Any, rows: list[dict[str, Any]], scale: int, **look: Any) -> None:
    """Draw the means of ``rows`` with their standard errors."""
    mean, error = ([scale * row[name] for row in rows] for name in ("mean", "standard_error"))
    axes.errorbar(x, mean, error, **look)


@mpl.rc_context(_STYLE)
def draw_truncation(result: TruncationSweep) -> Figure:
    """Draw the losses around the cut (left) and the share of its damage avoided (right)."""
    figure, left, right = _panels(3.7)
    conditions, times = result.config.conditions, result.config.preheat_times
    for name, look in _CUTS.items():
        shares = [result.losses[WEIGHTS[-1], c, times[-1], name] for c in conditions]
        left.plot(conditions, np.mean(shares, axis=1), **look)
        if name in ("plain", "metric"):
            _band(left, conditions, np.transpose(shares), look["color"])
    left.set_ylim(bottom=0)
    left.set_ylabel("loss, as a share of that at step 0")
    left.set_title(f"{WEIGHTS[-1]} weighted, preheated for $t = {times[-1]:g}$", fontsize=9)
    for colour, weights in zip((_BLUE, _RED), WEIGHTS, strict=True):
        for dashes, time in zip(_DASHES, reversed(times[-4:]), strict=False):
            where = {"weights": weights, "preheat_time": time}
            rows = [row for row in result.avoided() if where.items() <= row.items()]
            label = f"{weights}, $t = {time:g}$"
            _means(right, conditions, rows, 100, color=colour, linestyle=dashes, label=label)
    right.axhline(0, color=_INK, linewidth=0.7)
    right.set_ylabel("damage of the plain cut avoided (%)")
    right.set_title("metric of the loss against plain SVD", fontsize=9)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("condition number of the weights")
        _legend_below(axes)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without a background, whole or not at all; folders are made."""
    look: dict[str, Any] = {"dpi": 200, "transparent": True, "metadata": {"Software": None}}
    write_file(path, lambda staging: figure.savefig(staging, **look))
