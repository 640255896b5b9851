"""Writes docs/costs.md from the records of lab/benchmarks/ and experiments/auto-length.yaml.

python lab/benchmarks/costs_page.py docs/costs.md
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from hrp_lab.bench.record_store import load_records

RESULTS = Path(__file__).parents[2] / "experiments" / "results"

HEAD = """# What it costs

Generated from `experiments/results/` by `python lab/benchmarks/costs_page.py docs/costs.md`.
Absolute times are this machine's; read the ratios, which are each from one run.
"""

LARGE = """## Large models, one GPU

Llama shapes with random weights in bfloat16, 4 x 2048 tokens a step, all seven linear kinds;
medians of eight steps after warm-up. "once" is what a start costs beside training. EVA's first
batch was stopped: its incremental SVD takes 8192 tokens of every layer at once.
"""

OBSERVED = """Preheating's last steps are observed for the metric of the loss. What that adds, each
in one run (medians of eight steps; the first one loads its kernels and takes longer):
"""

SPECTRA = """## The SVD

Factored SVD of one product of 2048 x 128 and 128 x 2048 factors against two that form the matrix.
"""

LENGTH = """## `preheat_steps="auto"`

How far the leading subspaces turn between two looks (1 - smallest cosine, the median over
modules), and how much of the last look's subspace is there already (mean squared cosine), while a
LoRA of rank {preheat_rank} preheats `base-lm-30m` on GSM8K (batch {batch_size}). One look costs
{look:.2f} s here.
"""

AUTO = """This is what it does to a short run (`experiments/auto-length.yaml`: R = 64, 160 steps in
all, batch 4, tolerance 0.05, a look every 10 steps, one learning rate). It compares lengths of
preheating: here both are too long a part of the run for any HRP start to pay.
"""


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ratio(value: float | None, reference: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" + (f" ({value / reference:.2f}x)" if reference else "")


def large_models() -> list[dict]:
    """Return the records of `large_model.py`, in the order of the runs."""
    lines = (RESULTS / "large-model.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def shape_of(record: dict) -> str:
    return record["shape"] + (", checkpointing" if record["gradient_checkpointing"] else "")


def large_rows(record: dict) -> Iterator[list[str]]:
    lora = record["results"][0]
    for result in record["results"]:
        step, once = result.get("median_step_seconds"), result.get("start_seconds")
        if "svd_seconds" in result:
            once = statistics.median(result["svd_seconds"])
        yield [
            shape_of(record),
            result["way"],
            ratio(result.get("peak_gib"), lora["peak_gib"] if step else None),
            ratio(step, lora.get("median_step_seconds")),
            ratio(once, None) + (f", {result['ended']}" if "ended" in result else ""),
        ]


def ways() -> str:
    head = ["shape", "way", "peak, GiB (to LoRA r=8)", "step, s (to LoRA r=8)", "once, s"]
    return table(head, [row for record in large_models() for row in large_rows(record)])


def observed() -> str:
    """Tabulate what an observed step of preheating takes beside a plain one."""
    rows = []
    for record in large_models():
        for result in record["results"]:
            if (slower := result.get("observed_over_plain")) is not None:
                before, during = result["peak_gib_before_observing"], result["peak_gib_observing"]
                rows.append([shape_of(record), f"{slower:.3f}x", f"{during / before:.4f}x"])
    return table(["shape", "step time, observed / plain", "peak memory, observed / plain"], rows)


def spectra() -> str:
    record = read("spectrum-cpu")
    rows = [
        [f"`{name}`", f"{seconds:.4g}", f"{record['speedup'][name]:.0f}x"]
        for name, seconds in record["median_seconds"].items()
    ]
    return table([f"on {record['device']}", "median, s", "factored SVD is faster by"], rows)


def settling(record: dict) -> str:
    subspaces = {name: value for name, value in record.items() if name.startswith("r=")}
    head = ["step"]
    for name in subspaces:
        head += [f"{name}: turn", "overlap with the last"]
    rows = []
    for i, step in enumerate(record["looks"]):
        row = [str(step)]
        for subspace in subspaces.values():
            turn = f"{subspace['turns'][i - 1]:.3f}" if i else ""
            row += [turn, f"{subspace['overlap with the last'][i]:.2f}"]
        rows.append(row)
    return table(head, rows)


def automatic() -> str:
    """Tabulate preheating's length and the loss it leads to: stopped by "auto", or fixed."""
    records = sorted(load_records(RESULTS / "auto-length"), key=lambda record: record.run.seed)
    rows = []
    for arm in sorted({record.arm for record in records}):
        losses = [record.metrics["eval_loss"] for record in records if record.arm == arm]
        steps = [str(len(record.preheat_losses)) for record in records if record.arm == arm]
        each = ", ".join(f"{loss:.4f}" for loss in losses)
        rows.append([f"`{arm}`", ", ".join(steps), f"{statistics.mean(losses):.4f}", each])
    return table(["arm", "preheating steps, each seed", "test loss, mean", "each seed"], rows)


def page() -> str:
    lengths = read("auto-length")
    parts = [
        HEAD,
        LARGE,
        ways(),
        OBSERVED,
        observed(),
        SPECTRA,
        spectra(),
        LENGTH.format(look=lengths["seconds a look"], **lengths["settings"]),
        settling(lengths),
        AUTO,
        automatic(),
    ]
    return "\n".join(parts)


def main() -> None:
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
