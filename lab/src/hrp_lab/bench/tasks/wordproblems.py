"""Train on the demo's word problems: always available, offline, on any machine.

Options: ``train_rows``, ``test_rows``, ``eval_batch_size``, ``forgetting_rows`` (see `gsm8k`). The
model is the demo's embedded base.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from hrp.demo.base_model import BASE, load_base
from hrp.demo.data import answer_collator, answer_dataset
from hrp.demo.wordproblems import make_problems
from hrp_lab.bench.tasks import Task, TaskRequest
from hrp_lab.bench.tasks.answers import answer_metrics
from hrp_lab.bench.tasks.forgetting import forgetting_metric

_FORGETTING_LENGTH = 256  # tokens of a passage; the base has positions for twice as many


def load(request: TaskRequest) -> Task:
    """Load the task; see the module for its options."""
    options = request.settings(
        train_rows=2000, test_rows=200, eval_batch_size=64, forgetting_rows=0
    )
    _, tokenizer = load_base()
    train = make_problems(options["train_rows"], seed=0, split="train")
    test = answer_dataset(tokenizer, make_problems(options["test_rows"], seed=0, split="test"))
    collator = answer_collator(tokenizer)

    size = options["eval_batch_size"]

    def load_model(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(BASE, dtype=dtype)

    forgetting = forgetting_metric(
        tokenizer, load_model, options["forgetting_rows"], _FORGETTING_LENGTH, size
    )

    def evaluate(model: nn.Module) -> dict[str, float]:
        return answer_metrics(model, test, collator, size) | forgetting(model)

    return Task(
        task_type="CAUSAL_LM",
        train=answer_dataset(tokenizer, train),
        collator=collator,
        load_model=load_model,
        evaluate=evaluate,
        tokenizer=tokenizer,
    )
