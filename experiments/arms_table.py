"""Prints the Markdown table of `gsm8k-core`'s or the stages' records: each arm at its best rate.

python experiments/arms_table.py experiments/results/gsm8k-core
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from hrp_lab.bench.record_store import load_records
from hrp_lab.bench.sweeps import scores, select


def main() -> None:
    records = load_records(Path(sys.argv[1]))
    failed = {(r.arm, r.run.learning_rate) for r in records if r.status == "failed"}
    kept = [record for record in records if (record.arm, record.run.learning_rate) not in failed]
    best = select(scores(kept, "test_loss"), minimise=True)
    control = best["lora"].values
    print("| start | best learning rate | test loss, mean of seeds | each seed | against `lora` |")
    print("|---|---|---|---|---|")
    for arm, sweep in sorted(best.items()):
        differences = [sweep.values[seed] - control[seed] for seed in sorted(control)]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        mean = statistics.mean(differences)
        shown = f"{mean:+.4f} +- {error:.4f}"
        shown += f" ({abs(mean) / error:.0f} standard errors)" if arm != "lora" else ""
        each = ", ".join(f"{sweep.values[seed]:.4f}" for seed in sorted(sweep.values))
        print(f"| `{arm}` | {sweep.learning_rate:g} | {sweep.mean:.4f} | {each} | {shown} |")


if __name__ == "__main__":
    main()
