"""Makes the table of costs and marks those that do not compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hrp.report.table import DASH, Table
from hrp_lab.bench.comparisons import Analysis
from hrp_lab.bench.costs import Costs
from hrp_lab.bench.record import Record
from hrp_lab.report.arm_table import si
from hrp_lab.report.provenance import engine

MARK = " †"


def cost_table(analysis: Analysis) -> Table:
    """Return what each arm used at its best learning rate, mean over seeds."""
    records = {arm: analysis.records_of(arm) for arm in analysis.best}
    marks = _marks(records, analysis.control)
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


def _marks(records: Mapping[str, Sequence[Record]], control: str) -> dict[str, str]:
    """Mark the arms that another engine ran than the control, or several of them."""
    engines = {arm: {engine(record) for record in runs} for arm, runs in records.items()}
    others = engines.get(control)
    return {arm: MARK if others and len(used | others) > 1 else "" for arm, used in engines.items()}


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
