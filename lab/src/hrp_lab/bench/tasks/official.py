"""Take official numbers from lm-eval (extra ``lm-eval``), where it has the task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def official_metrics(
    model: Any, tokenizer: Any, tasks: Sequence[str], batch_size: int
) -> dict[str, float]:
    """Return metrics of lm-eval's tasks, named ``lm_eval_TASK_METRIC_FILTER``, no standard errors.

    Raises:
        ModuleNotFoundError: lm-eval is not installed.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the option `lm_eval` needs lm-eval: pip install 'hrp-lab[lm-eval]'"
        ) from error
    model.eval()
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    results = simple_evaluate(model=harness, tasks=list(tasks), log_samples=False)["results"]
    return {
        re.sub(r"[^A-Za-z0-9]+", "_", f"lm_eval {task} {name}").removesuffix("_none"): float(value)
        for task, metrics in results.items()
        for name, value in metrics.items()
        if "," in name and "stderr" not in name  # a metric and its filter; else the sample's size
    }
