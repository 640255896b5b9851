"""Train on GSM8K (Cobbe et al. 2021), judged by the loss on its worked answers.

Options: ``train_rows`` and ``test_rows`` (None: all), ``max_length`` tokens, ``eval_batch_size``,
``generate_rows`` (test rows for exact match by greedy generation; 0: none), ``max_new_tokens``,
``lm_eval`` (names of lm-eval's tasks to evaluate on as well), ``forgetting_rows`` (passages of the
standard library on which to measure what is forgotten; 0: none).
A local dataset is a folder with ``train.jsonl`` and ``test.jsonl``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from hrp_lab.bench.tasks import Task, TaskRequest
from hrp_lab.bench.tasks.answers import (
    Pair,
    answer_metrics,
    encode,
    exact_match,
    load_rows,
    load_tokenizer,
)
from hrp_lab.bench.tasks.forgetting import forgetting_metric
from hrp_lab.bench.tasks.official import official_metrics

HUB_NAME = "openai/gsm8k"
PROMPT = "Question: {question}\nAnswer: "


def load(request: TaskRequest) -> Task:
    """Load the task; see the module for its options."""
    options = request.settings(
        train_rows=None, test_rows=None, max_length=512, eval_batch_size=64, generate_rows=0,
        max_new_tokens=256, lm_eval=(), forgetting_rows=0,
    )  # fmt: skip
    tokenizer = load_tokenizer(request.model)
    train = pairs(request, "train")[: options["train_rows"]]
    test = pairs(request, "test")[: options["test_rows"]]
    return judged_by_answers(request, tokenizer, train, test, options)


def judged_by_answers(
    request: TaskRequest,
    tokenizer: Any,
    train: list[Pair],
    test: list[Pair],
    options: dict[str, Any],
) -> Task:
    """Make a task judged by answer loss and, where ``generate_rows`` asks for it, exact match."""
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)

    def load_model(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(request.model, dtype=dtype)

    test_rows = encode(tokenizer, test, options["max_length"])
    generated = test[: options["generate_rows"]]
    forgetting = forgetting_metric(
        tokenizer, load_model, options["forgetting_rows"], options["max_length"],
        options["eval_batch_size"],
    )  # fmt: skip

    def evaluate(model: nn.Module) -> dict[str, float]:
        metrics = answer_metrics(model, test_rows, collator, options["eval_batch_size"])
        if generated:
            metrics |= exact_match(model, tokenizer, generated, options["max_new_tokens"])
        if options["lm_eval"]:
            size = options["eval_batch_size"]
            metrics |= official_metrics(model, tokenizer, options["lm_eval"], size)
        return metrics | forgetting(model)

    return Task(
        task_type="CAUSAL_LM",
        train=encode(tokenizer, train, options["max_length"]),
        collator=collator,
        load_model=load_model,
        evaluate=evaluate,
        tokenizer=tokenizer,
    )


def pairs(request: TaskRequest, split: str) -> list[Pair]:
    """Return prompts and answers of a split, without the ``<<...>>`` notes for calculators."""
    rows = load_rows(request, f"{split}.jsonl", HUB_NAME, "main", split)
    return [
        (PROMPT.format(question=row["question"]), re.sub(r"<<.*?>>", "", row["answer"]))
        for row in rows
    ]
