"""Train on GSM8K (Cobbe et al. 2021) or MetaMathQA (Yu et al. 2023), judged by GSM8K's test set.

Options: ``train_rows`` and ``test_rows`` (None: all), ``max_length`` tokens, ``eval_batch_size``,
``generate_rows`` (test rows for exact match by greedy generation; 0: none), ``max_new_tokens``,
``lm_eval`` (names of lm-eval's tasks to evaluate on as well), ``forgetting_rows`` (passages of the
standard library on which to measure what is forgotten; 0: none).
A local dataset is a folder with ``train.jsonl`` (of MetaMathQA ``metamath.jsonl``, with ``query``
and ``response``) and ``test.jsonl``. Which rows of MetaMathQA the HRP paper used is not known to
us; ``train_rows`` takes the first so many after a shuffle with a fixed seed.
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
    official_metrics,
)
from hrp_lab.bench.tasks.forgetting import forgetting_metric

HUB_NAME = "openai/gsm8k"
METAMATH_HUB_NAME = "meta-math/MetaMathQA"
PROMPT = "Question: {question}\nAnswer: "
_SHUFFLE_SEED = 0


def load(request: TaskRequest) -> Task:
    """Load the task; see the module for its options."""
    metamath = request.name == "metamath-gsm8k"
    defaults: dict[str, Any] = {
        "train_rows": None, "test_rows": None, "max_length": 512, "eval_batch_size": 64,
        "generate_rows": 0, "max_new_tokens": 256, "lm_eval": (), "forgetting_rows": 0,
    }  # fmt: skip
    if metamath:
        defaults |= {"train_rows": 100_000, "eval_batch_size": 16, "generate_rows": 1319,
                     "max_new_tokens": 512}  # fmt: skip
    options = request.settings(**defaults)
    train = _metamath(request) if metamath else _pairs(request, "train", request.dataset)
    gsm8k = None if metamath and not request.folder else request.dataset
    test = _pairs(request, "test", gsm8k)
    return judged_by_answers(
        request, train[: options["train_rows"]], test[: options["test_rows"]], options
    )


def judged_by_answers(
    request: TaskRequest, train: list[Pair], test: list[Pair], options: dict[str, Any]
) -> Task:
    """Make a task judged by answer loss and, where ``generate_rows`` asks for it, exact match."""
    tokenizer = load_tokenizer(request.model)
    collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
    options = dict[str, Any](generate_rows=0, lm_eval=()) | options

    def load_model(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(request.model, dtype=dtype)

    length, size = options["max_length"], options["eval_batch_size"]
    test_rows = encode(tokenizer, test, length)
    generated = test[: options["generate_rows"]]
    forgetting = forgetting_metric(tokenizer, load_model, options["forgetting_rows"], length, size)

    def evaluate(model: nn.Module) -> dict[str, float]:
        metrics = answer_metrics(model, test_rows, collator, size)
        if generated:
            metrics |= exact_match(model, tokenizer, generated, options["max_new_tokens"])
        if options["lm_eval"]:
            metrics |= official_metrics(model, tokenizer, options["lm_eval"], size)
        return metrics | forgetting(model)

    return Task(
        task_type="CAUSAL_LM",
        train=encode(tokenizer, train, length),
        collator=collator,
        load_model=load_model,
        evaluate=evaluate,
    )


def _metamath(request: TaskRequest) -> list[Pair]:
    rows = load_rows(request, "metamath.jsonl", request.dataset or METAMATH_HUB_NAME, None, "train")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SHUFFLE_SEED))
    return [
        (PROMPT.format(question=rows[index]["query"]), rows[index]["response"])
        for index in order.tolist()
    ]


def _pairs(request: TaskRequest, split: str, dataset: str | None) -> list[Pair]:
    """Return prompts and answers of a split, without the ``<<...>>`` notes for calculators."""
    rows = load_rows(request, f"{split}.jsonl", dataset or HUB_NAME, "main", split)
    return [
        (PROMPT.format(question=row["question"]), re.sub(r"<<.*?>>", "", row["answer"]))
        for row in rows
    ]
