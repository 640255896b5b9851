"""Draws the figures of the lab; the only file of `hrp_lab.theory` that imports matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from hrp.files import write_file
from hrp_lab.theory.figure1 import ARMS, EXCESS, PANELS, Figure1
from hrp_lab.theory.problem import SIDES
from hrp_lab.theory.sweep import Sweep
from hrp_lab.theory.truncation_sweep import WEIGHTS, TruncationSweep

_INK = "#76808c"  # can be read on white and on the near-black of the site's dark theme
# Okabe and Ito's colours, told apart by colour-blind readers; dashes tell the lines apart in grey.
_LOOKS: dict[str, dict[str, Any]] = {
    "gaussian": {"color": "#999999", "linestyle": "-"},
    "orthogonal": {"color": "#e69f00", "linestyle": "--"},
    "HRP A": {"color": "#0072b2", "linestyle": "-"},
    "HRP B": {"color": "#d55e00", "linestyle": "-"},
    "target": {"color": _INK, "linestyle": ":"},
}
_NAMES = {
    "gaussian": "Gaussian",
    "orthogonal": "orthogonal",
    "HRP A": "HRP, direction A",
    "HRP B": "HRP, direction B (ours)",
    "target": "target's own directions",
}
_TITLES = {"classic": "classic LoRA", "asymmetric": "asymmetric LoRA"}
_CUTS: dict[str, dict[str, Any]] = {
    "plain": {"color": "#999999", "label": "cut by the plain SVD"},
    "metric": {"color": "#d55e00", "label": "cut in the metric of the loss"},
    "optimum": {"color": _INK, "label": "best of rank $r$", "linestyle": ":"},
    "preheated": {"color": "#0072b2", "label": "before the cut, rank $R$", "linestyle": "--"},
}
_LOWEST = 1e-4
_DASHES = ("-", "--", ":", "-.")
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


@contextmanager
def _drawn(height: float) -> Iterator[Figure]:
    """Make a figure of text width in our style, without touching the caller's."""
    with mpl.rc_context(_STYLE):
        yield Figure(figsize=(6.6, height), layout="constrained")


def draw_figure1(result: Figure1) -> Figure:
    """Draw the excess loss L(t) - L*: its mean, and the 10th to 90th percentile of the draws."""
    with _drawn(height=3.3) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, panel in zip((left, right), PANELS, strict=True):
            for arm in ARMS:
                _curve(axes, result, panel, arm)
            axes.axhline(EXCESS * result.optimum, color="#009e73", linewidth=0.9)
            axes.set_title(_TITLES[panel], fontsize=9)
            axes.set_xlabel("fine-tuning time $t$ (gradient flow)")
            axes.set_yscale("log")
            axes.set_ylim(_LOWEST, 2)
            axes.set_xlim(0, result.config.end_time)
        left.set_ylabel(f"excess loss $L(t) - L^*$,  $L^* = {result.optimum:g}$")
        left.text(
            0.98 * result.config.end_time,
            1.15 * EXCESS * result.optimum,
            "1 % of $L^*$",
            color="#009e73",
            ha="right",
        )
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figure


def _curve(axes: Any, result: Figure1, panel: Any, arm: str) -> None:
    """Draw an arm without its last recorded time, which is far to the right of the figure."""
    times = result.times[:-1]
    excess = np.maximum(result.losses[panel, arm][:, :-1] - result.optimum, 1e-16)
    low, high = np.percentile(excess, [10, 90], axis=0)
    axes.plot(times, excess.mean(0), label=_NAMES[arm], zorder=3, **_LOOKS[arm])
    axes.fill_between(times, low, high, color=_LOOKS[arm]["color"], alpha=0.18, linewidth=0)


def draw_sweep(result: Sweep) -> Figure:
    """Draw the final loss against preheat rank R at a few K (left), and the other way (right)."""
    with _drawn(height=3.9) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        _against_rank(left, result)
        _against_steps(right, result)
        limits = result.limits()
        for axes in (left, right):
            axes.axhline(limits["random"], color="#999999", linewidth=0.9, linestyle="--")
            axes.axhline(limits["optimum"], color=_INK, linewidth=0.9, linestyle=":")
            axes.legend(
                fontsize=7,
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                ncols=2,
                handlelength=3.2,
            )
        left.set_ylabel(f"final loss, asymmetric LoRA, $r = {result.config.rank}$")
        end = result.config.preheat_ranks[-1]
        left.text(end, limits["random"], "random start (T1)", ha="right", va="bottom")
        left.annotate(
            "optimum",
            (0, limits["optimum"]),
            (4, -9),
            textcoords="offset points",
            xycoords=("axes fraction", "data"),
        )
        left.margins(y=0.1)
        return figure


def _spread(values: tuple[int, ...], most: int) -> list[int]:
    """Return at most ``most`` of the values, first and last among them: more lines run together."""
    indices = np.linspace(0, len(values) - 1, most).round().astype(int)
    return [values[index] for index in np.unique(indices)]


def _against_rank(axes: Any, result: Sweep) -> None:
    ranks = result.config.preheat_ranks
    for direction in SIDES:
        for line, steps in enumerate(_spread(result.config.preheat_steps, 3)):
            rows = result.losses(direction, preheat_steps=steps)
            axes.errorbar(
                ranks,
                [row["mean"] for row in rows],
                [row["standard_error"] for row in rows],
                color=_LOOKS[f"HRP {direction}"]["color"],
                linestyle=_DASHES[line],
                marker="o",
                markersize=2.2,
                label=f"direction {direction}, $K = {steps}$",
            )
    chord = result.limits()["chord"]
    axes.plot(ranks, chord, color="#009e73", linewidth=1, label="bound on A at small $K$ (P8)")
    axes.set_xlabel("preheat rank $R$")


def _against_steps(axes: Any, result: Sweep) -> None:
    for direction in SIDES:
        for line, rank in enumerate(_spread(result.config.preheat_ranks, 4)):
            rows = result.losses(direction, preheat_rank=rank)
            axes.plot(
                result.config.preheat_steps,
                [row["mean"] for row in rows],
                color=_LOOKS[f"HRP {direction}"]["color"],
                linestyle=_DASHES[line],
                label=f"direction {direction}, $R = {rank}$",
            )
    axes.set_xscale("log")
    axes.set_xlabel("preheating steps $K$")


def draw_truncation(result: TruncationSweep) -> Figure:
    """Draw the losses around the cut (left) and the share of its damage avoided (right)."""
    with _drawn(height=3.7) as figure:
        left, right = figure.subplots(1, 2)
        _around_the_cut(left, result)
        _avoided_damage(right, result)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("condition number of the weights")
            axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        return figure


def _around_the_cut(axes: Any, result: TruncationSweep) -> None:
    conditions, time = result.config.conditions, result.config.preheat_times[-1]
    for name, look in _CUTS.items():
        shares = np.array([result.losses[WEIGHTS[-1], c, time, name] for c in conditions])
        axes.plot(conditions, shares.mean(1), **look)
        if name in ("plain", "metric"):
            low, high = np.percentile(shares, [10, 90], axis=1)
            axes.fill_between(conditions, low, high, color=look["color"], alpha=0.18, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("loss, as a share of that at step 0")
    axes.set_title(f"{WEIGHTS[-1]} weighted, preheated for $t = {time:g}$", fontsize=9)


def _avoided_damage(axes: Any, result: TruncationSweep) -> None:
    for color, weights in zip(("#0072b2", "#d55e00"), WEIGHTS, strict=True):
        for dashes, time in zip(_DASHES, reversed(result.config.preheat_times[-4:]), strict=False):
            rows = [
                row
                for row in result.avoided()
                if row["weights"] == weights and row["preheat_time"] == time
            ]
            axes.errorbar(
                result.config.conditions,
                [100 * row["mean"] for row in rows],
                [100 * row["standard_error"] for row in rows],
                color=color,
                linestyle=dashes,
                label=f"{weights}, $t = {time:g}$",
            )
    axes.axhline(0, color=_INK, linewidth=0.7)
    axes.set_ylabel("damage of the plain cut avoided (%)")
    axes.set_title("metric of the loss against plain SVD", fontsize=9)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG without a background, whole or not at all; folders are made."""
    look: dict[str, Any] = {"dpi": 200, "transparent": True, "metadata": {"Software": None}}
    write_file(path, lambda staging: figure.savefig(staging, **look))
