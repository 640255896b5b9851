"""Tables of where results come from: run ids, engines, commits, and what has no result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hrp.report.table import Table
from hrp_lab.bench.comparisons import Analysis
from hrp_lab.bench.record import Record

# Options of `hrp-lab bench run`, now or once, that change how a step is done, not what it computes.
_ENGINE_FLAGS = ("--padding_free", "--torch_compile", "--cuda_graphs", "--micro_batch_size")
_DIRTY = {True: " (with changes)", False: "", None: " (dirtiness unknown)"}


def engine(record: Record) -> tuple[str, str]:
    """Device and engine flags of a run: times and memory compare only where both are the same."""
    words = {word.partition("=")[0] for word in record.command.split()}
    flags = " ".join(flag for flag in _ENGINE_FLAGS if flag in words)
    return record.device or "unknown", flags or ("none" if record.command else "unknown")


def commit(record: Record) -> str:
    """The commit and whether its tree had changes."""
    return f"{record.git_commit}{_DIRTY[record.git_dirty]}" if record.git_commit else "unknown"


def origins_table(records: Sequence[Record]) -> Table:
    """How many records come from which commit, device and engine flags."""
    counts = Counter((commit(one), *engine(one)) for one in records)
    rows = tuple((str(count), *origin) for origin, count in sorted(counts.items()))
    caption = f"Where the {len(records)} records of this view come from. "
    caption += (
        "Losses of different engines agree up to rounding; their times and peak memory are not "
        "comparable."
        if len({origin[1:] for origin in counts}) > 1
        else "All were run by one engine."
    )
    return Table(caption, ("records", "commit", "device", "engine flags"), rows)


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
    facts = {
        "records": [str(len(records))],
        "commit": [commit(one) for one in records if one.git_commit],
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
