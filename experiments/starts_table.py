"""Prints the Markdown table of the starts in a benchmark's records, each at its best learning rate.

A start whose best rate is not settled is left out. Of several folders all but the first add only
arms that are charged for their start: what the same start does on another basis of cost.

    python experiments/starts_table.py experiments/results/standin-gsm8k-450
    python experiments/starts_table.py experiments/results/tries-wordproblems --control hrp-ab --all
    python experiments/starts_table.py experiments/results/standin-glue-rule --task glue-cola --all
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from hrp_lab.bench.arms import ARMS
from hrp_lab.bench.comparisons import Analysis, analyse, arm_labels, views
from hrp_lab.bench.record import Record
from hrp_lab.bench.record_store import load_records
from hrp_lab.bench.sweeps import settled
from hrp_lab.report.arm_table import arms_table

STARTS = (
    "oracle-b", "oracle-a", "hrp-ab", "hrp-auto", "hrp-b", "lora", "hrp-a", "gradient-svd",
    "lora_ga", "eva", "gradient-svd-b", "pissa", "olora", "orthogonal", "gaussian", "corda", "mica",
)  # fmt: skip


def starts_table(analysis: Analysis, arms: set[str]) -> str:
    """Return the columns up to the best learning rate, of the settled arms alone."""
    whole = arms_table(analysis)
    columns = whole.header.index("best learning rate") + 1
    rows = tuple(row[:columns] for row in whole.rows if row[0] in arms)
    table = dataclasses.replace(whole, header=whole.header[:columns], rows=rows)
    return table.markdown().partition("\n\n")[0] + "\n"


def joined(folders: Sequence[Path]) -> Iterator[Record]:
    """Yield the records of all folders, as of one experiment."""
    first, *others = map(load_records, folders)
    yield from first
    for record in itertools.chain(*others):
        if ARMS[record.arm].charged:
            run = dataclasses.replace(record.run, experiment=first[0].run.experiment)
            yield dataclasses.replace(record, run=run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+", help="folders of records, or packed files")
    parser.add_argument("--control", default="lora")
    parser.add_argument("--task", help="of several (default: the last)")
    parser.add_argument("--all", action="store_true", help="not the starts alone")
    options = parser.parse_args()
    of_all_tasks = views(joined(options.records), options.control)
    view = [view for view in of_all_tasks if options.task in (None, view.task)][-1]
    names = set(arm_labels(view.records).values())
    control = next(c for c in (options.control, f"{options.control} (plain cut)") if c in names)
    analysis = analyse(view, control=control)
    arms = settled(analysis.best)
    kept = {arm for arm in arms if options.all or arm.split()[0] in STARTS}
    print(starts_table(analysis, kept), end="")


if __name__ == "__main__":
    main()
