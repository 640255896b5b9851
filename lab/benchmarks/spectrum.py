"""The factored SVD against a dense one and against PEFT's `convert_to_lora`, in one run.

    python lab/benchmarks/spectrum.py --out experiments/results/spectrum-cpu.json

Times are medians; absolute ones mean little on a shared machine, so the record gives ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, convert_to_lora, get_peft_model
from torch import nn
from torch.utils.benchmark import Timer

from hrp.files import write_text
from hrp.spectra.factorization import factored_svd
from hrp.versions import installed_versions

RANK_KEPT = 8


def adapted_linear(size: int, rank: int, device: str) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(size, size, bias=False)).to(device)
    config = LoraConfig(r=rank, target_modules=["0"], init_lora_weights=False)
    return get_peft_model(model, config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="more only on an idle machine")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Converting a PEFT adapter to LoRA")
    model = adapted_linear(options.size, options.rank, options.device)
    layer = model.base_model.model[0]
    lora_A, lora_B = (f["default"].weight.detach() for f in (layer.lora_A, layer.lora_B))
    dense = layer.get_delta_weight("default").detach()
    ways: dict[str, tuple[Callable[[], object], int]] = {
        "factored_svd": (lambda: factored_svd(lora_A, lora_B, 1.0), 10 * options.repeats),
        "torch.linalg.svd": (lambda: torch.linalg.svd(dense, full_matrices=False), options.repeats),
        "peft.convert_to_lora": (lambda: convert_to_lora(model, RANK_KEPT), options.repeats),
    }
    times = {}
    for name, (way, count) in ways.items():
        timer = Timer("way()", globals={"way": way}, num_threads=options.threads)
        times[name] = [timer.timeit(1).mean for _ in range(count)]
    medians = {name: statistics.median(values) for name, values in times.items()}
    record = {
        "size": options.size,
        "rank": options.rank,
        "device": options.device,
        "threads": options.threads,
        "median_seconds": medians,
        "spread_seconds": {name: [min(v), max(v)] for name, v in times.items()},
        "speedup": {name: medians[name] / medians["factored_svd"] for name in medians},
        "versions": installed_versions(),
        "command": "python " + " ".join(sys.argv),
    }
    for name, median in medians.items():
        print(f"{name:22} {1e3 * median:9.1f} ms  {record['speedup'][name]:7.1f}x")
    if options.out:
        write_text(options.out, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
