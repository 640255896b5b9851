"""Prints the Markdown table of `gsm8k-core`'s or the stages' records: each arm at its best rate.

python experiments/arms_table.py experiments/results/gsm8k-core
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path

from hrp_lab.bench.record_store import load_records

Losses = dict[int, float]  # seed -> test loss


def losses_by_setting(source: Path) -> dict[str, dict[float, Losses]]:
    """Return arm -> learning rate -> losses, without the learning rates at which a seed failed."""
    losses: dict[str, dict[float, Losses]] = defaultdict(lambda: defaultdict(dict))
    records = load_records(source)
    failed = {(r.arm, r.run.learning_rate) for r in records if r.status == "failed"}
    for record in records:
        if (record.arm, record.run.learning_rate) not in failed:
            losses[record.arm][record.run.learning_rate][record.run.seed] = record.metrics[
                "test_loss"
            ]
    return losses


def main() -> None:
    arms = losses_by_setting(Path(sys.argv[1]))
    best = {
        arm: min(rates, key=lambda rate, rates=rates: statistics.mean(rates[rate].values()))
        for arm, rates in arms.items()
    }
    control = arms["lora"][best["lora"]]
    print("| start | best learning rate | test loss, mean of seeds | each seed | against `lora` |")
    print("|---|---|---|---|---|")
    for arm in sorted(arms):
        losses = arms[arm][best[arm]]
        differences = [losses[seed] - control[seed] for seed in sorted(control)]
        error = statistics.stdev(differences) / len(differences) ** 0.5
        mean = statistics.mean(differences)
        shown = f"{mean:+.4f} +- {error:.4f}"
        shown += f" ({abs(mean) / error:.0f} standard errors)" if arm != "lora" else ""
        each = ", ".join(f"{losses[seed]:.4f}" for seed in sorted(losses))
        average = statistics.mean(losses.values())
        print(f"| `{arm}` | {best[arm]:g} | {average:.4f} | {each} | {shown} |")


if __name__ == "__main__":
    main()
