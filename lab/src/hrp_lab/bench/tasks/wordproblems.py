"""Train on the demo's word problems: always available, offline, on any machine.

Options: ``train_rows``, ``test_rows``, ``eval_batch_size``, ``generate_rows``, ``forgetting_rows``
(see `gsm8k`). The model is the demo's embedded base.
"""

from __future__ import annotations

import dataclasses

from hrp.demo import BASE
from hrp_lab.bench.tasks import Task, TaskRequest
from hrp_lab.bench.tasks.answers import Pair
from hrp_lab.bench.tasks.gsm8k import judged_by_answers
from hrp_lab.demo_base.problems import make_problems

_MAX_LENGTH = 256  # tokens: more than any problem has; the base has positions for twice as many


def load(request: TaskRequest) -> Task:
    """Load the task; see the module for its options."""
    options = request.settings(
        train_rows=2000, test_rows=200, eval_batch_size=64, generate_rows=0, forgetting_rows=0
    ) | {"max_length": _MAX_LENGTH, "max_new_tokens": _MAX_LENGTH}
    train, test = (_pairs(options[f"{split}_rows"], split) for split in ("train", "test"))
    request = dataclasses.replace(request, model=str(BASE))
    return judged_by_answers(request, train, test, options)


def _pairs(rows: int, split: str) -> list[Pair]:
    problems = make_problems(rows, seed=0, split=split)
    return [(f"{problem['question']}\n", problem["answer"]) for problem in problems]
