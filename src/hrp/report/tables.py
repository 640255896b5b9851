"""Tables from records and analyses, as plain rows of text, and their Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hrp.bench.costs import Costs
from hrp.bench.record import Record
from hrp.bench.stats import LEVEL, Comparison
from hrp.bench.sweeps import Best
from hrp.bench.views import Analysis

DASH = "—"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header, with a caption that says how to read them."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return a Markdown table, the caption below it; names cannot break its cells or lines."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        table = ["| " + " | ".join(map(_markdown_cell, line)) + " |" for line in lines]
        return "\n".join([*table, "", _markdown_cell(self.caption), ""])


def _markdown_cell(text: str) -> str:
    one_line = " ".join(text.split())
    for mark in "\\|`*_<>[]":
        one_line = one_line.replace(mark, "\\" + mark)
    return one_line


def number(value: float, digits: int = 4) -> str:
    """A value as text: ``digits`` decimals below 100, as many digits above; a dash for NaN.

    >>> number(1.38671), number(12345.678), number(float("nan"))
    ('1.3867', '1.235e+04', '—')
    """
    if not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.{digits}g}"


def p_value(value: float) -> str:
    """A p value as text.

    >>> p_value(0.0300001), p_value(1e-9)
    ('0.030', '< 0.001')
    """
    if not math.isfinite(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def spread(mean: float, deviation: float) -> str:
    """Mean and standard deviation over seeds as text.

    >>> spread(1.38671, 0.0021), spread(1.38671, float("nan"))
    ('1.3867 ± 0.0021', '1.3867')
    """
    return number(mean) + (f" ± {number(deviation)}" if math.isfinite(deviation) else "")


def si(value: float, unit: str = "") -> str:
    """A quantity with a decimal prefix.

    >>> si(2.5e15, "FLOP"), si(30720, "tok/s"), si(12)
    ('2.50 PFLOP', '30.72 ktok/s', '12')
    """
    for factor, prefix in (
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if abs(value) >= factor:
            return f"{value / factor:.2f} {prefix}{unit}"
    text = f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"
    return f"{text} {unit}".strip()


def arms_table(analysis: Analysis) -> Table:
    """Every arm at its best learning rate: mean, spread, difference to the control, verdict."""
    compared = {one.arm: one for one in analysis.comparisons}
    others = _other_metrics(analysis)
    header = ["arm", f"{analysis.metric}, mean ± sd", f"minus {analysis.control} [95 % CI]"]
    header += ["Holm p", "verdict", *[f"gap to {analysis.oracle} closed"] * bool(analysis.gaps)]
    header += ["best learning rate", "seeds", "bootstrap"]
    rows = []
    for arm, best in analysis.best.items():
        row = [arm, spread(best.mean, best.spread), *_verdict_cells(compared.get(arm))]
        if arm == analysis.control:
            row[-1] = "control"
        if analysis.gaps:
            share = analysis.gaps.get(arm)
            row.append(f"{share[0]:.0%} ± {share[1]:.0%}" if share else DASH)
        row += [f"{best.learning_rate:g}{_sweep_mark(best)}", str(len(best.values))]
        row.append(_bootstrap_cell(compared.get(arm)))
        rows.append((*row, *(_metric_cell(analysis, arm, name) for name in others)))
    header += [f"{name}, mean ± sd" for name in others]
    return Table(_arms_caption(analysis), tuple(header), tuple(rows))


def _other_metrics(analysis: Analysis) -> list[str]:
    names = {name for record in analysis.view.records for name in record.metrics}
    return sorted(names - {analysis.metric})


def _metric_cell(analysis: Analysis, arm: str, metric: str) -> str:
    values = [one.metrics[metric] for one in analysis.records_of(arm) if metric in one.metrics]
    if not values:
        return DASH
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return spread(float(np.mean(values)), deviation)


def _sweep_mark(best: Best) -> str:
    if len(best.grid) == 1:
        return " (not swept)"
    return " (edge)" if best.on_edge else ""


def _verdict_cells(one: Comparison | None) -> list[str]:
    if one is None or one.verdict == "incomplete":
        return [DASH, DASH, DASH if one is None else one.verdict]
    low, high = one.interval
    difference = f"{one.difference:+.4f} [{low:+.4f}, {high:+.4f}]{'' if one.pooled else ' *'}"
    return [difference, p_value(one.holm_p), one.verdict]


def _bootstrap_cell(one: Comparison | None) -> str:
    if one is None or one.verdict == "incomplete":
        return DASH
    return f"[{one.bootstrap[0]:+.4f}, {one.bootstrap[1]:+.4f}]"


def _arms_caption(analysis: Analysis) -> str:
    view = analysis.view
    better = "less is better" if analysis.minimise else "more is better"
    text = (
        f"{view.experiment}, {view.task}, {view.basis} ({view.steps}); {better}. Each arm at the "
        "learning rate with the best mean over seeds of this same metric ('edge': the best is at "
        "an end of the sweep, which should be wider). Differences are paired by seed; intervals "
        "and p values use a variance pooled over arms, never less than the pair's own; p is "
        "corrected by Holm over "
        f"{len(analysis.comparisons)} comparisons, and a verdict needs p ≤ {LEVEL:g}. The "
        "bootstrap over seeds is too narrow for few seeds and decides nothing."
    )
    if any(not one.pooled and one.verdict != "incomplete" for one in analysis.comparisons):
        text += " *: an arm with an outlying spread, tested by its own."
    return text


def cost_table(analysis: Analysis) -> Table:
    """What each arm used at its best learning rate, mean over seeds."""
    rows = []
    for arm in analysis.best:
        costs = [record.costs for record in analysis.records_of(arm)]
        rows.append((arm, *_cost_cells(costs)))
    header = (
        "arm",
        "preheating steps",
        "fine-tuning steps",
        "charged steps",
        "tokens",
        "compute",
        "wall time",
        "throughput",
        "peak memory",
        "extra parameters",
    )
    caption = (
        f"Costs of a run, mean over seeds, the start included: {analysis.view.experiment}, "
        f"{analysis.view.task}, {analysis.view.basis} ({analysis.view.steps}). Compute by the "
        "formulas in hrp.bench.costs; extra parameters are trainable ones held at the peak beyond "
        f"the plain adapter's; {DASH}: not measured. Wall time and throughput of runs that "
        "shared a device say little."
    )
    return Table(caption, header, tuple(rows))


def _cost_cells(costs: Sequence[Costs]) -> list[str]:
    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in costs]))

    steps = [f"{mean(name):.0f}" for name in ("preheat_steps", "finetune_steps", "charged_steps")]
    measured = {
        "tokens": si(mean("tokens")),
        "flops": si(mean("flops"), "FLOP"),
        "wall_s": f"{mean('wall_s'):.1f} s",
        "tokens_per_second": si(mean("tokens_per_second"), "tok/s"),
        "peak_memory_bytes": f"{mean('peak_memory_bytes') / 2**30:.2f} GiB",
    }
    # No run uses none of these: a zero was not measured. A plain adapter has no extra parameters.
    shown = [text if mean(name) else DASH for name, text in measured.items()]
    extra = si(mean("extra_parameters")) if mean("tokens") else DASH
    return [*steps, *shown, extra]


def sources_table(analysis: Analysis) -> Table:
    """Run ids behind every row of the arms table."""
    rows = [
        (arm, f"{best.learning_rate:g}", " ".join(r.run_id for r in analysis.records_of(arm)))
        for arm, best in analysis.best.items()
    ]
    caption = "Records behind each row, by seed; a record's file is named by its run id."
    return Table(caption, ("arm", "learning rate", "run ids"), tuple(rows))


def failures_table(records: Sequence[Record]) -> Table | None:
    """Runs that failed or do not apply, with the reason, alike ones together; None without any."""
    counts: dict[tuple[str, ...], int] = {}
    for record in records:
        if record.status != "ok":
            run = record.run
            key = (run.experiment, run.task, run.arm, record.status, record.reason)
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        return None
    rows = tuple((*key[:4], str(count), key[4]) for key, count in sorted(counts.items()))
    header = ("experiment", "task", "arm", "status", "runs", "reason")
    return Table("Runs without a result. They take part in no comparison.", header, rows)


def provenance_table(records: Sequence[Record]) -> Table:
    """Where the records come from: commits, versions, devices, commands, dates."""
    dirty = {True: " (with changes)", False: "", None: ""}
    facts = {
        "records": [str(len(records))],
        "commit": [f"{one.git_commit}{dirty[one.git_dirty]}" for one in records if one.git_commit],
        "device": [one.device for one in records if one.device],
        "versions": [", ".join(f"{k} {v}" for k, v in sorted(o.versions.items())) for o in records],
        "model": [str(one.run.config["model"]) for one in records if "model" in one.run.config],
        "command": [one.command for one in records if one.command],
        "first started": [min((one.started for one in records if one.started), default="")],
        "last ended": [max(one.ended for one in records)] if records else [],
    }
    rows = tuple(
        (name, text) for name, found in facts.items() for text in sorted(set(found)) if text
    )
    return Table("Provenance.", ("fact", "value"), rows)
