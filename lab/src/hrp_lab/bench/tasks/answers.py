"""Encode questions with worked answers for causal models; compute answer loss and exact match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer

from hrp_lab.bench.tasks import Example, TaskRequest

IGNORED = -100  # the label that torch's cross entropy leaves out
_NUMBER = r"(-?[\d][\d,]*(?:\.\d+)?)"
_ANSWER = re.compile(rf"(?:####|[Tt]he answer is:?)\s*\$?{_NUMBER}")

Pair = tuple[str, str]  # prompt, completion


def load_tokenizer(model: str) -> Any:
    """Load the tokenizer of ``model``; its end-of-sequence token pads where it has no other."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_rows(
    request: TaskRequest, file: str, hub_name: str, config: str | None, split: str
) -> list[dict[str, Any]]:
    """Read ``file`` in the request's local folder, or else a split of a data set on the hub."""
    if request.folder:
        lines = existing(request.folder / file).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    from datasets import load_dataset

    rows: list[dict[str, Any]] = load_dataset(hub_name, config, split=split).to_list()
    return rows


def existing(path: Path) -> Path:
    """Return ``path``; raise ``FileNotFoundError`` that names it where it is no file."""
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is missing; give its folder as `--dataset_path`")
    return path


def encode(tokenizer: Any, pairs: Sequence[Pair], max_length: int) -> list[Example]:
    """Encode ``prompt + completion + eos``, cut to ``max_length``; labels leave the prompt out.

    Rows whose prompt alone fills ``max_length`` are left out: they have nothing to learn from.
    """
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([answer for _, answer in pairs], add_special_tokens=False)["input_ids"]
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        target = [*answer, tokenizer.eos_token_id]
        labels = ([IGNORED] * len(prompt) + target)[:max_length]
        if len(prompt) < max_length:
            rows.append({"input_ids": (prompt + target)[:max_length], "labels": labels})
    return rows


def half_precision(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast on a GPU, as in training, and none on the CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def by_length(rows: Sequence[Example], batch_size: int) -> Iterator[list[Example]]:
    """Yield batches of examples of like length, to pad little."""
    ordered = sorted(rows, key=lambda row: len(row["input_ids"]))
    for start in range(0, len(ordered), batch_size):
        yield [dict(row) for row in ordered[start : start + batch_size]]


@torch.no_grad()
def answer_metrics(
    model: nn.Module, rows: Sequence[Example], collator: Any, batch_size: int = 64
) -> dict[str, float]:
    """Return ``eval_loss`` (nats a token, over all answer tokens) and ``token_accuracy``.

    Logits are kept for one batch only, in float32 for the answers' positions only.
    """
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    right = torch.zeros((), dtype=torch.long, device=device)
    tokens = 0
    for batch_rows in by_length(rows, batch_size):
        batch = collator(batch_rows).to(device)
        with half_precision(device):
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        targets = batch["labels"][:, 1:]
        wanted = targets != IGNORED
        logits, targets = output.logits[:, :-1][wanted].float(), targets[wanted]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        right += (logits.argmax(-1) == targets).sum()
        tokens += targets.numel()
    return {"eval_loss": total.item() / tokens, "token_accuracy": right.item() / tokens}


def final_number(text: str) -> str | None:
    """Return the number after ``####`` or "The answer is", without commas; None if there is none.

    >>> final_number("3 + 4 = 7\\n#### 1,007"), final_number("The answer is: 7.0"), final_number("")
    ('1007', '7', None)
    """
    match = _ANSWER.search(text)
    if not match:
        return None
    number = match.group(1).replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number


@torch.no_grad()
def exact_match(
    model: Any, tokenizer: Any, pairs: Sequence[Pair], max_new_tokens: int, batch_size: int = 64
) -> dict[str, float]:
    """Return the share of prompts whose greedy continuation gives the reference's final number."""
    model.eval()
    device = next(model.parameters()).device
    right = 0
    ordered = sorted(pairs, key=lambda pair: len(pair[0]))
    for start in range(0, len(ordered), batch_size):
        prompts, answers = zip(*ordered[start : start + batch_size], strict=True)
        batch = tokenizer(
            list(prompts), padding=True, padding_side="left", return_tensors="pt",
            return_token_type_ids=False,
        ).to(device)  # fmt: skip
        with half_precision(device):
            output = model.generate(
                **batch, max_new_tokens=max_new_tokens, do_sample=False,
                pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        texts = tokenizer.batch_decode(
            output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for text, answer in zip(texts, answers, strict=True):
            right += final_number(text) is not None and final_number(text) == final_number(answer)
    return {"exact_match": right / len(pairs)}


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
