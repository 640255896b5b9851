"""The Markdown table of `gsm8k_core.py`'s or `stages.py`'s records: each arm at its best rate.

python experiments/arms_table.py experiments/results/gsm8k-core
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

Losses = dict[int, float]  # seed -> test loss


def losses_by_setting(folder: Path) -> dict[str, dict[float, Losses]]:
    """Arm -> learning rate -> losses, of the learning rates at which every seed converged."""
    found: dict[str, dict[float, Losses]] = defaultdict(lambda: defaultdict(dict))
    diverged = set()
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        setting = record["arm"], record["learning_rate"]
        found[setting[0]][setting[1]][record["seed"]] = record["test_loss"]
        if record["test_loss"] is None:
            diverged.add(setting)
    for arm, learning_rate in diverged:
        del found[arm][learning_rate]
    return found


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
