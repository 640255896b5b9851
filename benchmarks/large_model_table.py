"""The Markdown cost table of `large_model.py`'s records.

python benchmarks/large_model_table.py experiments/results/large-model-*.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path


def cell(value: float | None, reference: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" + (f" ({value / reference:.2f}x)" if reference else "")


def rows(record: dict) -> list[str]:
    checkpointing = ", checkpointing" if record["gradient_checkpointing"] else ""
    lora = record["results"][0]
    lines = []
    for result in record["results"]:
        seconds = result.get("median_step_seconds")
        once = result.get("start_seconds") or (
            statistics.median(result["svd_seconds"]) if "svd_seconds" in result else None
        )
        trained = seconds is not None
        lines.append(
            f"| {record['shape']}{checkpointing} | {result['way']} "
            f"| {cell(result.get('peak_gib'), lora['peak_gib'] if trained else None)} "
            f"| {cell(seconds, lora['median_step_seconds'])} | {cell(once, None)} |"
        )
    return lines


def main() -> None:
    print("| shape | way | peak, GiB (against LoRA r=8) | step, s (against LoRA r=8) | once, s |")
    print("|---|---|---|---|---|")
    for path in sys.argv[1:]:
        print("\n".join(rows(json.loads(Path(path).read_text()))))


if __name__ == "__main__":
    main()
