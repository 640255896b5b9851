"""The Markdown table of the starts in a benchmark's records, each at its best learning rate.

A start whose best rate has not been run on all seeds is left out.

python experiments/starts_table.py experiments/results/standin-gsm8k-450
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from hrp.bench.record import load_records
from hrp.bench.views import analyse, views
from hrp.report.tables import Table, arms_table

STARTS = (
    "oracle-b", "oracle-a", "hrp-ab", "hrp-auto", "hrp-b", "lora", "hrp-a", "gradient-svd",
    "lora_ga", "eva", "gradient-svd-b", "pissa", "olora", "orthogonal", "gaussian", "corda", "mica",
)  # fmt: skip
COLUMNS = 6  # arm, metric, difference, p, verdict, gap closed


def starts_table(folder: Path) -> str:
    """Table of the first view of the records in ``folder``."""
    analysis = analyse(views(load_records(folder))[0])
    whole = arms_table(analysis)
    done = {arm for arm, best in analysis.best.items() if not best.is_overtaken(analysis.minimise)}
    rows = tuple(row[:COLUMNS] for row in whole.rows if row[0] in done.intersection(STARTS))
    table: Table = dataclasses.replace(whole, header=whole.header[:COLUMNS], rows=rows)
    return table.markdown().partition("\n\n")[0] + "\n"


if __name__ == "__main__":
    print(starts_table(Path(sys.argv[1])), end="")
