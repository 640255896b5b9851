"""Prints the short tables of the kept start, from its records, as Markdown.

python experiments/summary_table.py                      # the first table of the results page
python experiments/summary_table.py readme               # README's table
python experiments/summary_table.py exact                # forgetting and exact answers
python experiments/summary_table.py pairs                # the comparisons that decide
python experiments/summary_table.py charging             # what is charged, share of the gap
python experiments/summary_table.py seeds kept-cola      # a classifier's scores by seed
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hrp.report.table import Table
from hrp_lab.bench.record import Record
from hrp_lab.bench.record_store import load_all
from hrp_lab.report import summary
from hrp_lab.report.starts_summary import exact_match_table, starts_table

RESULTS = Path(__file__).parent / "results"
LENGTHS = ("kept-gsm8k-450", "kept-gsm8k-930", "kept-gsm8k-1860")
FORGETTING = ("kept-gsm8k-forgetting",)
EARLIER = ("standin-gsm8k-450", "standin-gsm8k-930")
RANKS = ("kept-gsm8k-r8", "kept-gsm8k-r16", "kept-gsm8k-r32")
CLASSIFIER_SETTINGS = ("learning_rate", "warmup_share", "keep")


def records_of(names: Sequence[str]) -> list[Record]:
    """Return the packed records of the experiments ``names``."""
    return load_all([RESULTS / f"{name}.jsonl" for name in names])


def table(kind: str, experiment: str = "kept-cola") -> Table:
    """Return the table of that kind; ``experiment`` is that of `seeds`."""
    return {
        "short": lambda: summary.short_table(records_of(LENGTHS), records_of(FORGETTING)),
        "readme": lambda: starts_table(
            records_of(LENGTHS), records_of(FORGETTING), records_of(EARLIER)
        ),
        "exact": lambda: exact_match_table(records_of(FORGETTING)),
        "pairs": lambda: summary.pairs_table(records_of(LENGTHS + RANKS)),
        "charging": lambda: summary.charging_table(records_of(LENGTHS[:2])),
        "seeds": lambda: summary.seeds_table(records_of([experiment]), CLASSIFIER_SETTINGS),
    }[kind]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("short", "readme", "exact", "pairs", "charging", "seeds")
    parser.add_argument("kind", nargs="?", default="short", choices=kinds)
    parser.add_argument("experiment", nargs="?", default="kept-cola", help="of `seeds`")
    options = parser.parse_args()
    print(table(options.kind, options.experiment).markdown(), end="")


if __name__ == "__main__":
    main()
