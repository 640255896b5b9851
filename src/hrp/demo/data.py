"""Reads the demo's word problems and encodes them as tokens whose loss counts the answer alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross entropy leaves out
PROBLEMS = Path(__file__).parent / "problems"


def read_problems(split: str = "train") -> list[dict[str, str]]:
    """Return the 2,000 "train" or the 200 "test" problems, with keys ``question`` and ``answer``.

    An answer works its problem out, an equation a line, and ends in ``#### N`` like GSM8K's.
    ``python -m hrp_lab.demo_base.problems`` makes them; no question is in both splits.
    """
    lines = (PROBLEMS / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def answer_dataset(
    tokenizer: PreTrainedTokenizerBase, problems: Iterable[Mapping[str, str]]
) -> list[dict[str, list[int]]]:
    """Encode each problem as ``question\\nanswer<eos>``, a dict of ``input_ids`` and ``labels``.

    Both lists have the same length; ``labels`` is -100 on the question and its newline and equals
    ``input_ids`` on the answer and the end-of-sequence token.
    """
    rows = []
    for problem in problems:
        prompt = tokenizer.encode(f"{problem['question']}\n", add_special_tokens=False)
        answer = tokenizer.encode(problem["answer"], add_special_tokens=False)
        target = [*answer, tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + target, "labels": [IGNORED] * len(prompt) + target})
    return rows


def answer_collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """Return HF's collator that pads inputs, ``attention_mask`` and ``labels`` to the longest."""
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
