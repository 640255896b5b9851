"""Makes the demo's base, adapter and word problems, and trains with the HF Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from hrp.demo.base_model import load_base
from hrp.demo.data import IGNORED, answer_collator, answer_dataset
from hrp.demo.settings import DemoConfig
from hrp.demo.wordproblems import make_problems

SHOWN = 3
"""Number of test problems whose answers are shown."""


@dataclass(frozen=True)
class Task:
    """Holds the base model, itself never trained, and the encoded word problems."""

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    train: list[dict[str, list[int]]]
    test: list[dict[str, list[int]]]
    shown: list[dict[str, str]]  # the first test problems, as text


def make_task(config: DemoConfig) -> Task:
    """Make the problems, the same for every seed: seeds vary LoRA's start and the order."""
    base, tokenizer = load_base()
    train = make_problems(config.train_problems, seed=0, split="train")
    test = make_problems(config.test_problems, seed=0, split="test")
    return Task(
        base,
        tokenizer,
        train=answer_dataset(tokenizer, train),
        test=answer_dataset(tokenizer, test),
        shown=test[:SHOWN],
    )


def copy_base(task: Task, seed: int) -> PreTrainedModel:
    """Return a copy of the base, all of it trainable; the global generators start from ``seed``."""
    set_seed(seed)
    return copy.deepcopy(task.base)


def make_adapter(config: DemoConfig, task: Task, seed: int) -> PeftModel:
    """Return a copy of the base with a LoRA of PEFT's default start, drawn by ``seed``."""
    base = copy_base(task, seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, lora)


def trainer_settings(
    config: DemoConfig, task: Task, seed: int, learning_rate: float, scratch: str
) -> dict[str, Any]:
    """Return what the HF Trainer is given, for preheating and for fine-tuning alike."""
    args = TrainingArguments(
        output_dir=scratch,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=len(task.test),  # one batch: a mean over tokens, not of means
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        seed=seed,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,  # the same numbers on every machine, as far as that goes
    )
    collator = answer_collator(task.tokenizer)
    return {"args": args, "train_dataset": task.train, "data_collator": collator}


class _Ticks(TrainerCallback):
    """Tells of each optimizer step as it is done."""

    def __init__(self, tick: Callable[[int], object]) -> None:
        self.tick = tick

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.tick(1)


def fine_tune(
    model: PreTrainedModel | PeftModel,
    task: Task,
    settings: dict[str, Any],
    tick: Callable[[int], object] = lambda steps: None,
) -> tuple[dict[str, float], list[float]]:
    """Train ``model`` in place; returns its test metrics and the training loss of each step."""
    trainer = Trainer(
        model=model,
        eval_dataset=task.test,
        compute_metrics=exact_answers,
        # The likeliest next token at every position: whole logits stay out of the metrics.
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
        callbacks=[_Ticks(tick)],
        **settings,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    metrics = trainer.evaluate()
    return metrics, [row["loss"] for row in trainer.state.log_history if "loss" in row]


@torch.no_grad()
def answers(model: PreTrainedModel | PeftModel, task: Task) -> list[str]:
    """Return the model's greedy answer to each question of ``task.shown``, at most 64 tokens."""
    model.eval()
    said = []
    for problem in task.shown:
        prompt = task.tokenizer(
            problem["question"] + "\n", add_special_tokens=False, return_tensors="pt"
        )
        ids = prompt["input_ids"]
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=64,
            do_sample=False,
            pad_token_id=task.tokenizer.eos_token_id,
        )
        answer = task.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
        said.append(answer.strip())
    return said


def exact_answers(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of problems whose worked answer greedy decoding gives in full.

    One pass over the references tells: greedy decoding gives the reference exactly where the
    likeliest token after each of its prefixes is its own next token.
    """
    greedy, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    right = (greedy == labels) | (labels == IGNORED)
    return {"exact": float(np.all(right, axis=1).mean())}
