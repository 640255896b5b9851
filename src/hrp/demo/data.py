"""Encodes word problems as tokens whose loss counts the answer alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

IGNORED = -100  # the label that torch's cross entropy leaves out


def answer_dataset(
    tokenizer: PreTrainedTokenizerBase, problems: Iterable[Mapping[str, str]]
) -> list[dict[str, list[int]]]:
    """Encode each problem as ``question\\nanswer<eos>``, a dict of ``input_ids`` and ``labels``.

    Both lists have the same length; ``labels`` is -100 on the question and its newline and equals
    ``input_ids`` on the answer and the end-of-sequence token.
    """
    return [_encode(tokenizer, problem["question"], problem["answer"]) for problem in problems]


def _encode(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> dict[str, list[int]]:
    prompt = tokenizer.encode(question + "\n", add_special_tokens=False)
    target = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return {"input_ids": prompt + target, "labels": [IGNORED] * len(prompt) + target}


def answer_collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """Return HF's collator that pads inputs, ``attention_mask`` and ``labels`` to the longest."""
    return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
