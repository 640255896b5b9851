"""Lists where results come from (run ids, engines, commits) and runs without a result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hrp.report.table import Table
from hrp_lab.bench.comparisons import Analysis
from hrp_lab.bench.record import Record

# Options of `hrp-lab bench run`, also former ones, that change how a step is done and not what it
# computes.
_ENGINE_FLAGS = ("--padding_free", "--torch_compile", "--cuda_graphs", "--micro_batch_size")
_DIRTY = {True: " (with changes)", False: "", None: " (changes unknown)"}


def engine(record: Record) -> tuple[str, str]:
    """Return device and engine flags: times and memory compare only where both are the same."""
    words = {word.partition("=")[0] for word in record.command.split()}
    flags = " ".join(flag for flag in _ENGINE_FLAGS if flag in words)
    return record.device or "unknown", flags or ("none" if record.command else "unknown")


def commit(record: Record) -> str:
    """Return the commit and whether its tree had changes."""
    return f"{record.git_commit}{_DIRTY[record.git_dirty]}" if record.git_commit else "unknown"


def origins_table(records: Sequence[Record]) -> Table:
    """Count the records by commit, device and engine flags."""
    counts = Counter((commit(record), *engine(record)) for record in records)
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
    """Return the run ids behind every row of the arms table."""
    rows = []
    for arm, best in analysis.best.items():
        run_ids = " ".join(record.run_id for record in analysis.records_of(arm))
        rows.append((arm, f"{best.learning_rate:g}", run_ids))
    caption = "Records behind each row, by seed; a record's file is named by its run id."
    return Table(caption, ("arm", "learning rate", "run ids"), tuple(rows))


def failures_table(records: Sequence[Record]) -> Table | None:
    """Count runs that failed or do not apply, by their reason; None without any."""
    counts = Counter(
        (record.run.experiment, record.run.task, record.arm, record.status, record.reason)
        for record in records
        if record.status != "ok"
    )
    rows = tuple((*key[:4], str(count), key[4]) for key, count in sorted(counts.items()))
    header = ("experiment", "task", "arm", "status", "runs", "reason")
    words = "Runs without a result. They take part in no comparison."
    return Table(words, header, rows) if rows else None


def provenance_table(records: Sequence[Record]) -> Table:
    """Return where the records come from: commits, versions, devices, commands, dates."""
    facts = {
        "records": {str(len(records))},
        "commit": {commit(record) for record in records if record.git_commit},
        "device": {record.device for record in records},
        "versions": {
            ", ".join(f"{k} {v}" for k, v in sorted(record.versions.items())) for record in records
        },
        "model": {str(record.run.config.get("model", "")) for record in records},
        "command": {record.command for record in records},
        "first started": {min((r.started for r in records if r.started), default="")},
        "last ended": {max((r.ended for r in records if r.ended), default="")},
    }
    rows = [(name, text) for name, texts in facts.items() for text in sorted(texts) if text]
    return Table("Provenance.", ("fact", "value"), tuple(rows))
