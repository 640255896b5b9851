"""Train on MetaMathQA (Yu et al. 2023), judged by GSM8K's test set, as in the HRP paper.

Which rows of MetaMathQA the paper used is not known to us; ``train_rows`` takes the first so many
after a shuffle with a fixed seed. Options: those of `gsm8k`. Hub names only, or a
folder with ``metamath.jsonl`` (``query``, ``response``) and GSM8K's ``test.jsonl``.
"""

from __future__ import annotations

import torch

from hrp_lab.bench.tasks import Task, TaskRequest
from hrp_lab.bench.tasks.answers import load_rows, load_tokenizer
from hrp_lab.bench.tasks.gsm8k import HUB_NAME, PROMPT, judged_by_answers, pairs

TRAIN_HUB_NAME = "meta-math/MetaMathQA"
_SHUFFLE_SEED = 0


def load(request: TaskRequest) -> Task:
    """Load the task; see the module for its options."""
    options = request.settings(
        train_rows=100_000, test_rows=None, max_length=512, eval_batch_size=16, generate_rows=1319,
        max_new_tokens=512, lm_eval=(), forgetting_rows=0,
    )  # fmt: skip
    tokenizer = load_tokenizer(request.model)
    rows = load_rows(request, "metamath.jsonl", TRAIN_HUB_NAME, None, "train")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SHUFFLE_SEED))
    train = [
        (PROMPT.format(question=rows[index]["query"]), rows[index]["response"])
        for index in order.tolist()[: options["train_rows"]]
    ]
    gsm8k = request.dataset if request.folder else HUB_NAME
    test = pairs(TaskRequest("gsm8k", request.model, gsm8k), "test")[: options["test_rows"]]
    return judged_by_answers(request, tokenizer, train, test, options)
