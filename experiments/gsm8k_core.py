"""GSM8K on a small base model: PEFT's default start against HRP's three, at equal total steps.

Every arm gets the same total number of optimizer steps: preheating's are taken out of the
fine-tuning's. One JSON record a run; finished runs are not done again.

    python experiments/gsm8k_core.py --model DIR/base-lm-30m --data DIR/gsm8k \
        --out experiments/results/gsm8k-core --workers 12
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainingArguments,
    set_seed,
)

import hrp
from hrp.versions import installed_versions

ARMS = {"lora": None, "hrp-a": "A", "hrp-b": "B", "hrp-ab": "AB"}
LEARNING_RATES = (4e-3, 8e-3, 2e-3, 1.6e-2, 1e-3)
SEEDS = (0, 1, 2)
PREHEAT_LEARNING_RATE = 1e-3
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
MAX_LENGTH = 512


def encode(tokenizer, path: Path) -> list[dict]:
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        answer = re.sub(r"<<.*?>>", "", row["answer"])
        prompt = tokenizer(f"Question: {row['question']}\nAnswer: ")["input_ids"]
        completion = [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id]
        ids = (prompt + completion)[:MAX_LENGTH]
        rows.append({"input_ids": ids, "labels": ([-100] * len(prompt) + completion)[:MAX_LENGTH]})
    return rows


@torch.no_grad()
def answer_loss(model, rows: list[dict], collator) -> float:
    """Mean cross-entropy over all answer tokens of the test set."""
    model.eval()
    total, tokens = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(ordered), 64):
        batch = collator(ordered[start : start + 64]).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        labels = batch["labels"][:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.logits[:, :-1].float().transpose(1, 2), labels, reduction="sum"
        )
        total, tokens = total + losses.item(), tokens + int((labels != -100).sum())
    return total / tokens


def arguments(options, learning_rate: float, seed: int, steps: int) -> TrainingArguments:
    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is saved there
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        train_sampling_strategy="group_by_length",  # half the padding, twice the speed
        weight_decay=0.0,
        bf16=torch.cuda.is_available(),
        seed=seed,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="error",
    )


class Workbench:
    """Model and data of one worker, loaded once."""

    def __init__(self, options) -> None:
        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        self.train = encode(self.tokenizer, options.data / "train.jsonl")
        self.test = encode(self.tokenizer, options.data / "test.jsonl")[: options.test_rows]
        self.collator = DataCollatorForSeq2Seq(self.tokenizer, padding=True)

    def adapter(self, seed: int):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        base = AutoModelForCausalLM.from_pretrained(self.options.model, dtype=torch.bfloat16)
        set_seed(seed)
        return get_peft_model(base.to(device), LoraConfig(**LORA))

    def data(self, args: TrainingArguments) -> dict:
        return {"args": args, "train_dataset": self.train, "data_collator": self.collator}

    def preheat(self, seed: int, folder: Path) -> None:
        options = self.options
        config = hrp.HRPConfig(
            options.preheat_rank,
            options.preheat_steps,
            learning_rate=PREHEAT_LEARNING_RATE,
            seed=1000 + seed,
        )
        args = arguments(options, PREHEAT_LEARNING_RATE, seed, options.preheat_steps)
        model = self.adapter(seed)
        hrp.preheat(model, config, trainer_cls=Trainer, **self.data(args)).save(folder)

    def run(self, arm: str, learning_rate: float, seed: int, spectrum_folder: Path) -> dict:
        options, started = self.options, time.time()
        model = self.adapter(seed)
        preheat_steps = 0
        if ARMS[arm]:
            spectrum = hrp.Spectrum.load(waited_for(spectrum_folder))
            hrp.initialize_lora_hrp_weights(model, spectrum, ARMS[arm])
            preheat_steps = spectrum.provenance["steps"]
        start = answer_loss(model, self.test, self.collator)
        args = arguments(options, learning_rate, seed, options.steps - preheat_steps)
        trainer = Trainer(model=model, **self.data(args))
        trainer.train()
        end = answer_loss(model, self.test, self.collator)
        curve = [
            (e["step"], e["loss"])
            for e in trainer.state.log_history
            if math.isfinite(e.get("loss", math.nan))
        ]
        return {
            "arm": arm,
            "learning_rate": learning_rate,
            "seed": seed,
            "total_steps": options.steps,
            "preheat_steps": preheat_steps,
            "fine_tuning_steps": options.steps - preheat_steps,
            "preheat_rank": options.preheat_rank if ARMS[arm] else None,
            "lora": LORA,
            "batch_size": options.batch_size,
            "test_loss_at_start": start,
            "status": "ok" if math.isfinite(end) else "diverged",
            "test_loss": end if math.isfinite(end) else None,
            "train_losses": curve,
            "seconds": time.time() - started,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": installed_versions(),
            "command": "python " + " ".join(sys.argv),
        }


def waited_for(folder: Path, limit_s: float = 600) -> Path:
    started = time.time()
    while not folder.exists():
        if time.time() - started > limit_s:
            raise TimeoutError(f"'{folder}' was not preheated within {limit_s} s")
        time.sleep(1)
    return folder


def write_json(record: dict, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, allow_nan=False) + "\n")
    temporary.rename(path)


def work(options, tasks, spectra: Path) -> None:
    bench = Workbench(options)
    while (task := tasks.get()) is not None:
        kind, *details = task
        if kind == "preheat":
            bench.preheat(details[0], spectra / f"seed{details[0]}")
            continue
        arm, learning_rate, seed = details
        record = bench.run(arm, learning_rate, seed, spectra / f"seed{seed}")
        write_json(record, options.out / f"{arm}-lr{learning_rate:g}-seed{seed}.json")
        print(f"{arm:7} lr {learning_rate:g} seed {seed}: {record['test_loss']:.4f}", flush=True)


def run_all(options, tasks: list[tuple], spectra: Path) -> None:
    context = multiprocessing.get_context("fork")  # imports are paid once; CUDA is not started yet
    queue = context.Queue()
    count = min(options.workers, len(tasks))
    for task in [*tasks, *[None] * count]:
        queue.put(task)
    workers = [context.Process(target=work, args=(options, queue, spectra)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--preheat_rank", type=int, default=128)
    parser.add_argument("--preheat_steps", type=int, default=100)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--test_rows", type=int, default=None)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    spectra = options.out.parent / f".{options.out.name}-spectra"
    preheats = [("preheat", seed) for seed in SEEDS if not (spectra / f"seed{seed}").exists()]
    runs = [
        ("run", arm, learning_rate, seed)
        for learning_rate, arm, seed in itertools.product(LEARNING_RATES, ARMS, SEEDS)
        if not (options.out / f"{arm}-lr{learning_rate:g}-seed{seed}.json").exists()
    ]
    runs.sort(key=lambda run: run[1] != "lora")  # while the spectra are being made
    if runs:
        run_all(options, [*preheats, *runs], spectra)


if __name__ == "__main__":
    main()
