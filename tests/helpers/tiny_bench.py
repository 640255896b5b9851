"""Makes a bench on a tiny Llama, so that every arm runs in a fraction of a second."""

from __future__ import annotations

import dataclasses
import gc
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerFast

from helpers.tiny import collate, tiny_llama, token_rows
from hrp.demo import load_base
from hrp_lab.bench.context import Bench, Places
from hrp_lab.bench.protocol import Experiment, experiment_from, plan
from hrp_lab.bench.record import RunSpec
from hrp_lab.bench.tasks import Task

STEPS = 12
BASE: dict = {
    "experiment": "tiny",
    "tasks": ["gsm8k"],
    "model": "tiny-llama",
    "arms": ["lora"],
    "steps": STEPS,
    "learning_rates": [1e-2],
    "seeds": [0],
    "batch_size": 16,
    "dtype": "float32",
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "training": {"logging_steps": 5},
    "hrp": {"preheat_rank": 8, "preheat_steps": 2, "learning_rate": 1e-2},
    "auto": {"subspace_window": 2},
    "gradient": {"batches": 1},
    "covariance": {"rows": 2},
    "oracle": {"learning_rate": 3e-3, "steps": 3},
    "widen": 0,
}


def collator(rows: list[dict]) -> dict[str, torch.Tensor]:
    batch = collate([{name: torch.as_tensor(value) for name, value in row.items()} for row in rows])
    return batch | {"attention_mask": torch.ones_like(batch["input_ids"])}


def eval_loss(model: torch.nn.Module) -> dict[str, float]:
    with torch.no_grad():
        model.eval()
        return {"eval_loss": model(**collator(token_rows(8, seed=9))).loss.item()}


def tiny_task() -> Task:
    return Task(
        task_type="CAUSAL_LM",
        train=token_rows(64),
        collator=collator,
        load_model=lambda dtype: tiny_llama().to(dtype),
        evaluate=eval_loss,
    )


class TinyBench(Bench):
    def __init__(self, folder: Path) -> None:
        super().__init__(Places(records=folder / "records", cache=folder / "cache"))
        self._tiny = tiny_task()
        gc.collect()
        gc.freeze()  # as a bench does: runs collect garbage, and pytest holds much

    def task(self, spec: RunSpec) -> Task:
        return self._tiny


def experiment(**changes) -> Experiment:
    return experiment_from(BASE | changes)


def spec(arm: str, **changes) -> RunSpec:
    return plan(experiment(arms=[arm], **changes), {})[0]


def ragged_task() -> Task:
    """Make a task of 23 rows of 3 to 24 tokens: the last of batches of 8 is short."""
    draw = random.Random(0)
    rows = []
    for _ in range(23):
        ids = [draw.randrange(2, 16) for _ in range(draw.randint(3, 24))]
        rows.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    padded = DataCollatorForSeq2Seq(load_base()[1], padding=True)
    return dataclasses.replace(tiny_task(), train=rows, collator=padded)


def word_tokenizer(words: Sequence[str], ends: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words that, as T5's does, ends every text, or, as Llama's, does not."""
    known = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    template = ("$A <eos>", "$A $B <eos>", [("<eos>", 1)]) if ends else ("$A", "$A $B", [])
    known.post_processor = processors.TemplateProcessing(*template)
    return PreTrainedTokenizerFast(
        tokenizer_object=known, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write a JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


FEW = {
    "experiment": "few",
    "tasks": [{"name": "wordproblems", "options": {"train_rows": 16, "test_rows": 4}}],
    "model": "demo",
    "dtype": "float32",
    "arms": ["lora", "hrp-a"],
    "steps": 3,
    "batch_size": 2,
    "seeds": [0],
    "learning_rates": [1e-2],
    "lora": {"r": 2, "target_modules": "all-linear"},
    "hrp": {"preheat_rank": 4, "preheat_steps": 1},
    "widen": 0,
}
