"""When do the leading subspaces settle? Preheating on GSM8K, looked at every few steps.

For each look: the turn since the last look (what ``preheat_steps="auto"`` goes by), and how much of
the subspace at the last step is there already. One JSON record.

    python experiments/auto_length.py --model DIR/base-lm-30m --data DIR/gsm8k/train.jsonl \
        --out experiments/results/auto-length.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

import hrp
from hrp.adapter_checks import TEMPORARY_ADAPTER
from hrp.layers import lora_modules, read_spectrum
from hrp.spectrum import Spectrum
from hrp.stopping import subspace_turn
from hrp.versions import installed_versions

TOLERANCES = (0.5, 0.2, 0.1, 0.05, 0.02)


def batches(tokenizer, path: Path, size: int, max_length: int) -> torch.utils.data.DataLoader:
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(f"Question: {row['question']}\nAnswer: ")["input_ids"]
        answer = [*tokenizer(row["answer"])["input_ids"], tokenizer.eos_token_id]
        ids, labels = prompt + answer, [-100] * len(prompt) + answer
        rows.append({"input_ids": ids[:max_length], "labels": labels[:max_length]})
    return torch.utils.data.DataLoader(
        rows, size, shuffle=True, collate_fn=DataCollatorForSeq2Seq(tokenizer)
    )


def overlap(one: Spectrum, two: Spectrum, rank: int, side: str) -> float:
    """Mean squared cosine of the leading subspaces, the median over modules."""
    cosines = one.subspace_alignment(two, rank, side).values()
    return median(found.square().mean().item() for found in cosines)


def stop(looks: list[int], turns: list[float], tolerance: float) -> int | None:
    """Step at which "auto" would have stopped."""
    pairs = zip(looks[1:], turns, strict=True)
    return next((step for step, turn in pairs if turn < tolerance), None)


def measured(looks: dict[int, Spectrum], ranks: list[int]) -> dict:
    steps, last = list(looks), looks[max(looks)]
    found = {}
    for rank, side in itertools.product(ranks, ("U", "Vh")):
        cropped = [spectrum.crop(rank) for spectrum in looks.values()]
        turns = [subspace_turn(one, two, (side,)) for one, two in itertools.pairwise(cropped)]
        found[f"r={rank} {side}"] = {
            "turns": turns,
            "overlap with the last": [overlap(one, last, rank, side) for one in looks.values()],
            "stops at": {str(limit): stop(steps, turns, limit) for limit in TOLERANCES},
        }
    return {"looks": steps, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--preheat_rank", type=int, default=128)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    base.to("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    looks: dict[int, Spectrum] = {}
    seconds = []
    calls = itertools.count()

    def loss_fn(model, batch):
        step = next(calls)  # optimizer steps done so far
        if step and step % options.every == 0:
            began = time.perf_counter()
            spectrum = read_spectrum(lora_modules(model, TEMPORARY_ADAPTER), {})
            seconds.append(time.perf_counter() - began)
            looks[step] = spectrum.crop(32)
            print(step, f"look {seconds[-1]:.2f} s", flush=True)
        return model(**batch).loss

    config = hrp.HRPConfig(options.preheat_rank, options.steps, learning_rate=1e-3)
    data = batches(tokenizer, options.data, options.batch_size, options.max_length)
    final = hrp.preheat(model, config, dataloader=data, loss_fn=loss_fn)
    looks[options.steps] = final.crop(32)
    record = {
        "settings": {name: str(value) for name, value in vars(options).items() if name != "out"},
        "modules": len(final),
        "seconds a look": median(seconds),
        "losses": final.provenance["losses"],
        "versions": installed_versions(),
        **measured(looks, [4, 16]),
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
