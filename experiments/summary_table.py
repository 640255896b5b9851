"""Prints the short tables of the kept start, from its records, as Markdown.

python experiments/summary_table.py                      # the starts at every length
python experiments/summary_table.py readme               # the table of README
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

RESULTS = Path(__file__).parent / "results"
LENGTHS = ("kept-gsm8k-450", "kept-gsm8k-930", "kept-gsm8k-1860")
RANKS = ("kept-gsm8k-r8", "kept-gsm8k-r16", "kept-gsm8k-r32")
CLASSIFIER_SETTINGS = ("learning_rate", "warmup_share", "keep")

# Row of README's table -> (experiment, arm); `{}` is the number of steps.
README_ROWS = {
    "LoRA (PEFT's default)": ("kept-gsm8k-{}", "lora"),
    'LoRA, HRP "AB"': ("kept-gsm8k-{}", "hrp-ab"),
    "DoRA": ("kept-gsm8k-{}", "dora"),
    'DoRA, HRP "AB"': ("kept-gsm8k-{}", "dora-hrp-ab"),
    "best start of another kind † (gradient-svd)": ("standin-gsm8k-{}", "gradient-svd"),
    "full fine-tuning †": ("standin-gsm8k-{}", "full"),
    "oracle: full fine-tuning's own directions": ("kept-gsm8k-{}", "oracle-b"),
}
README_STEPS = (450, 930)


def records_of(names: Sequence[str]) -> list[Record]:
    """Return the packed records of the experiments ``names``."""
    return load_all([RESULTS / f"{name}.jsonl" for name in names])


def table(kind: str, experiment: str | None = None) -> Table:
    """Return the table of that kind."""
    if kind == "readme":
        rows = {
            name: [(records_of([source.format(steps)]), arm) for steps in README_STEPS]
            for name, (source, arm) in README_ROWS.items()
        }
        header = ("start", *(f"{steps} steps in all" for steps in README_STEPS))
        return summary.losses_table(rows, header)
    if kind == "pairs":
        return summary.pairs_table(records_of(LENGTHS + RANKS))
    if kind == "charging":
        return summary.charging_table(records_of(LENGTHS[:2]))
    if kind == "seeds":
        return summary.seeds_table(records_of([experiment or "kept-cola"]), CLASSIFIER_SETTINGS)
    return summary.short_table(records_of(LENGTHS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("short", "readme", "pairs", "charging", "seeds")
    parser.add_argument("kind", nargs="?", default="short", choices=kinds)
    parser.add_argument("experiment", nargs="?", help="of `seeds` (default: kept-cola)")
    options = parser.parse_args()
    print(table(options.kind, options.experiment).markdown(), end="")


if __name__ == "__main__":
    main()
