"""Runs the demo: LoRA on word problems from PEFT's default start and from HRP's starts.

Every arm gets the same data, in the same order for the same seed, and the same total of
optimizer steps: what HRP spends on preheating is taken out of its fine-tuning.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator
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
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback

from hrp.config import HRPConfig
from hrp.demo import load_base
from hrp.demo.data import IGNORED, answer_collator, answer_dataset, read_problems
from hrp.demo.settings import ARMS, Arm, DemoConfig, Run
from hrp.initialization import initialize_lora_hrp_weights
from hrp.preheating.pipeline import preheat
from hrp.spectra.spectrum import Spectrum

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
    """Read the problems, the same for every seed: seeds vary LoRA's start and the order."""
    base, tokenizer = load_base()
    train = read_problems("train")[: config.train_problems]
    test = read_problems("test")[: config.test_problems]
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


@dataclass(frozen=True)
class Finished:
    """Holds a run, the model that it trained, and the spectrum preheated on its seed."""

    run: Run
    arm: Arm
    model: PreTrainedModel | PeftModel
    spectrum: Spectrum


def train_all(config: DemoConfig, task: Task) -> Iterator[Finished]:
    """Yield each run as it ends; the HRP starts of one seed share one preheating."""
    for seed in range(config.seed, config.seed + config.seeds):
        spectrum = preheat_once(config, task, seed)
        for arm in ARMS:
            yield train_one(config, task, seed, arm, spectrum)


def preheat_once(config: DemoConfig, task: Task, seed: int) -> Spectrum:
    """Preheat for one seed, by the Trainer and the arguments that fine-tuning uses."""
    began = time.perf_counter()
    rate = config.preheat_learning_rate
    hrp_config = HRPConfig(config.preheat_rank, config.preheat_steps, learning_rate=rate, seed=seed)
    model = make_adapter(config, task, seed)
    with tempfile.TemporaryDirectory() as scratch:
        settings = trainer_settings(config, task, seed, rate, scratch)
        spectrum = preheat(model, hrp_config, trainer_cls=Trainer, **settings)
    spectrum.provenance["cost"] = {
        "seconds": round(time.perf_counter() - began, 1),
        "examples": config.preheat_steps * config.batch_size,
    }
    return spectrum


def train_one(config: DemoConfig, task: Task, seed: int, arm: Arm, spectrum: Spectrum) -> Finished:
    """Train one arm, from the spectrum where the arm wants one, and test it."""
    began = time.perf_counter()
    model = make_adapter(config, task, seed) if arm.adapter else copy_base(task, seed)
    spent, waited = 0, 0.0
    if arm.direction is not None:
        initialize_lora_hrp_weights(model, spectrum, arm.direction)
        spent, waited = config.preheat_steps, spectrum.provenance["cost"]["seconds"]
    with tempfile.TemporaryDirectory() as scratch:
        settings = trainer_settings(config, task, seed, arm.learning_rate, scratch)
        settings["args"].max_steps = config.steps - spent
        trainer = Trainer(
            model=model,
            eval_dataset=task.test,
            compute_metrics=exact_answers,
            # The likeliest next token at every position: whole logits stay out of the metrics.
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(dim=-1),
            **settings,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        metrics = trainer.evaluate()
    run = Run(
        arm=arm.name,
        seed=seed,
        preheat_steps=spent,
        steps=config.steps - spent,
        learning_rate=arm.learning_rate,
        test_loss=metrics["eval_loss"],
        exact=metrics["eval_exact"],
        seconds=time.perf_counter() - began + waited,
        losses=[row["loss"] for row in trainer.state.log_history if "loss" in row],
    )
    return Finished(run, arm, model, spectrum)


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
            attention_mask=prompt["attention_mask"],
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
