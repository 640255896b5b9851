"""Makes the tables of arms, of scores and of costs, and writes their numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hrp.report.table import DASH, Table, number
from hrp_lab.bench.comparisons import Analysis
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.stats import LEVEL, Comparison, Share
from hrp_lab.bench.sweeps import Best
from hrp_lab.report.provenance import engine

MARK = " †"
LOST = "not significant among so many"
"""This marks an interval that by itself leaves 0 out; of many, some do so by chance."""
_SHARES = (-1.0, 2.0)  # of a gap; beyond them a percentage says no more than the difference does


def p_value(value: float) -> str:
    """Return a p value as text.

    >>> p_value(0.0300001), p_value(1e-9)
    ('0.030', '≤ 0.001')
    """
    if not math.isfinite(value):
        return DASH
    return "≤ 0.001" if value < 0.001 else f"{value:.3f}"


def spread(mean: float, deviation: float) -> str:
    """Return mean and standard deviation over seeds as text.

    >>> spread(1.38671, 0.0021), spread(1.38671, float("nan"))
    ('1.3867 ± 0.0021', '1.3867')
    """
    return number(mean) + (f" ± {number(deviation)}" if math.isfinite(deviation) else "")


def difference(comparison: Comparison) -> str:
    """Return the difference of a comparison with its 95 % interval as text."""
    low, high = comparison.interval
    return f"{comparison.difference:+.4f} [{low:+.4f}, {high:+.4f}]"


def si(value: float, unit: str = "") -> str:
    """Return a quantity with a decimal prefix.

    >>> si(2.5e15, "FLOP"), si(30720, "tok/s"), si(12)
    ('2.50 PFLOP', '30.72 ktok/s', '12')
    """
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10.0**power:
            return f"{value / 10.0**power:.2f} {prefix}{unit}"
    text = f"{value:.0f}" if float(value).is_integer() else f"{value:.2f}"
    return f"{text} {unit}".strip()


def arms_table(analysis: Analysis) -> Table:
    """Return each arm at its best learning rate: mean, difference to the control, verdict."""
    compared = {comparison.arm: comparison for comparison in analysis.comparisons}
    metrics = {name for record in analysis.view.records for name in record.metrics}
    others = sorted(metrics - {analysis.metric})
    header = ["arm", f"{analysis.metric}, mean ± sd", f"minus {analysis.control} [95 % CI]"]
    gap = f"gap to {analysis.oracle} closed [95 % CI]"
    header += ["Holm p", "verdict", *[gap] * bool(analysis.gaps), "compute / control"]
    header += ["best learning rate", "seeds", "bootstrap"]
    header += [f"{name}, mean ± sd" for name in others]
    rows = []
    for arm, best in analysis.best.items():
        *verdict, bootstrap = _comparison_cells(compared.get(arm))
        if arm == analysis.control:
            verdict[-1] = "control"
        row = [arm, spread(best.mean, best.spread), *verdict]
        if analysis.gaps:
            row.append(_gap_cell(analysis.gaps.get(arm)))
        row += [number(relative_compute(analysis, arm), 2), _rate_cell(best)]
        row += [str(len(best.values)), bootstrap]
        rows.append((*row, *(_metric_cell(analysis, arm, name) for name in others)))
    return Table(_caption(analysis), tuple(header), tuple(rows))


def _metric_cell(analysis: Analysis, arm: str, metric: str) -> str:
    values = analysis.values_of(arm, metric)
    if not values:
        return DASH
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return spread(float(np.mean(values)), deviation)


def relative_compute(analysis: Analysis, arm: str) -> float:
    """Return FLOPs of a run of ``arm`` over the control's, means over seeds; NaN if unknown."""
    if analysis.control not in analysis.best:
        return math.nan
    flops, control = (
        float(np.mean([record.costs.flops for record in analysis.records_of(name)]))
        for name in (arm, analysis.control)
    )
    return flops / control if flops and control else math.nan


def _gap_cell(share: Share | None) -> str:
    if share is None or not _SHARES[0] <= share.share <= _SHARES[1]:
        return DASH
    return str(share)


def _rate_cell(best: Best) -> str:
    rate = f"{best.learning_rate:g}"
    if (ahead := best.overtaken_by) is not None:
        seeds = len(best.by_rate[ahead])
        return f"{rate} (not settled: {ahead:g} is better on {seeds} seed{'s' * (seeds > 1)})"
    if len(best.grid) == 1:
        return f"{rate} (not swept)"
    return f"{rate} (edge)" if best.on_edge else rate


def _comparison_cells(comparison: Comparison | None) -> tuple[str, str, str, str]:
    """Return the difference, its p value, the verdict and the bootstrap's interval."""
    if comparison is None or not comparison.judged:
        return DASH, DASH, comparison.verdict if comparison else DASH, DASH
    low, high = comparison.interval
    lost = comparison.verdict == "no significant difference" and not low <= 0 <= high
    return (
        difference(comparison) + ("" if comparison.pooled else " *"),
        p_value(comparison.holm_p),
        LOST if lost else comparison.verdict,
        f"[{comparison.bootstrap[0]:+.4f}, {comparison.bootstrap[1]:+.4f}]",
    )


def _caption(analysis: Analysis) -> str:
    text = (
        f"{analysis.view.title}; {analysis.sense}. Each arm at the learning rate with the best "
        "mean over seeds of this same metric ('edge': the best is at an end of the sweep, which "
        "should be wider; 'not settled': another rate is better on the seeds that it has, so that "
        "the arm has no verdict and no part in the others'). "
    )
    judged = [comparison for comparison in analysis.comparisons if comparison.judged]
    if pool := analysis.pool:
        text += (
            f"Differences are paired by seed; intervals and p values use a variance pooled over "
            f"{len(pool.alike)} arms (sd of a run {number(math.sqrt(pool.variance))}, "
            f"{pool.degrees} degrees of freedom), never less than the pair's own. Each interval is "
            f"for its comparison alone; p is corrected by Holm over all {len(judged)}, and a "
            f"verdict needs p ≤ {LEVEL:g}. The bootstrap over seeds is too narrow for few seeds "
            "and decides nothing. "
        )
    text += (
        "Compute / control: FLOPs of a run, its start included, over the control's, means over "
        "seeds; an equal number of steps is not equal compute."
    )
    if analysis.gaps:
        text += (
            f" Gap closed: (control - arm) / (control - {analysis.oracle}), 0 % at the control and "
            f"100 % at {analysis.oracle}, with Fieller's 95 % limits (t), paired by seed, not "
            f"corrected; {DASH}: outside {_SHARES[0]:.0%} to {_SHARES[1]:.0%}, or without limits."
        )
    if not all(comparison.pooled for comparison in judged):
        text += " *: an arm with an outlying spread, tested by its own."
    return text


def cost_table(analysis: Analysis) -> Table:
    """Return what each arm used at its best learning rate, mean over seeds.

    Marked are the arms that another engine ran than the control, or several of them.
    """
    records = {arm: analysis.records_of(arm) for arm in analysis.best}
    engines = {arm: {engine(record) for record in runs} for arm, runs in records.items()}
    others = engines.get(analysis.control, set())
    marks = {arm: MARK * bool(others and len(used | others) > 1) for arm, used in engines.items()}
    rows = tuple(
        (arm, *_cost_cells([record.costs for record in runs], marks[arm]))
        for arm, runs in records.items()
    )
    header = (
        "arm", "preheating steps", "fine-tuning steps", "charged steps", "tokens", "compute",
        "wall time", "throughput", "peak memory", "extra parameters",
    )  # fmt: skip
    caption = (
        f"Costs of a run, mean over seeds, the start included: {analysis.view.title}. Compute by "
        "the formulas in hrp_lab.bench.costs; extra parameters are trainable ones held at the peak "
        f"beyond the plain adapter's; {DASH}: not measured. Wall time and throughput of runs that "
        "shared a device say little."
    )
    if any(marks.values()):
        caption += (
            f"{MARK}: not all by the one engine of the control's runs; not comparable with them."
        )
    return Table(caption, header, rows)


def _cost_cells(costs: Sequence[Costs], mark: str) -> list[str]:
    def mean(name: str) -> float:
        return float(np.mean([getattr(run, name) for run in costs]))

    steps = [f"{mean(name):.0f}" for name in ("preheat_steps", "finetune_steps", "charged_steps")]
    measured = {
        "tokens": si(mean("tokens")),
        "flops": si(mean("flops"), "FLOP"),
        "wall_s": f"{mean('wall_s'):.1f} s{mark}",
        "tokens_per_second": si(mean("tokens_per_second"), "tok/s") + mark,
        "peak_memory_bytes": f"{mean('peak_memory_bytes') / 2**30:.2f} GiB{mark}",
    }
    # Every run uses some of each: a zero was not measured. Plain adapters have no extra parameters.
    shown = [text if mean(name) else DASH for name, text in measured.items()]
    extra = si(mean("extra_parameters")) if mean("tokens") else DASH
    return [*steps, *shown, extra]
