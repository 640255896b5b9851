from __future__ import annotations

import pytest
import torch

from hrp.demo import load_base
from hrp.demo.data import answer_collator, answer_dataset, read_problems

PROBLEMS = read_problems()[:8]


@pytest.fixture(scope="module")
def tokenizer():
    return load_base()[1]


def test_labels_cover_the_answer_and_nothing_of_the_question(tokenizer) -> None:
    for problem, row in zip(PROBLEMS, answer_dataset(tokenizer, PROBLEMS), strict=True):
        kept = [token for token in row["labels"] if token != -100]
        assert tokenizer.decode(kept) == problem["answer"] + tokenizer.eos_token
        masked = len(row["labels"]) - len(kept)
        assert row["labels"][:masked] == [-100] * masked
        assert tokenizer.decode(row["input_ids"][:masked]) == problem["question"] + "\n"
        assert row["input_ids"][masked:] == kept


def test_a_problem_reads_the_same_encoded_whole_or_in_two_parts(tokenizer) -> None:
    for problem, row in zip(PROBLEMS, answer_dataset(tokenizer, PROBLEMS), strict=True):
        whole = tokenizer.encode(f"{problem['question']}\n{problem['answer']}{tokenizer.eos_token}")
        assert row["input_ids"] == whole


def test_padding_counts_in_neither_attention_nor_loss(tokenizer) -> None:
    rows = answer_dataset(tokenizer, PROBLEMS)
    batch = answer_collator(tokenizer)([dict(row) for row in rows])
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    assert len(set(lengths.tolist())) > 1
    assert torch.equal(batch["attention_mask"].sum(1), lengths)
    padding = batch["attention_mask"] == 0
    assert bool((batch["labels"][padding] == -100).all())
    assert bool((batch["input_ids"][padding] == tokenizer.pad_token_id).all())


def test_padding_leaves_the_loss_unchanged(tokenizer) -> None:
    model, _ = load_base()
    rows = answer_dataset(tokenizer, PROBLEMS)
    collate = answer_collator(tokenizer)
    with torch.no_grad():
        together = model(**collate([dict(row) for row in rows])).loss
        alone = [model(**collate([dict(row)])).loss for row in rows]
    tokens = torch.tensor([sum(label != -100 for label in row["labels"]) for row in rows])
    mean = (torch.stack(alone) * tokens).sum() / tokens.sum()
    torch.testing.assert_close(together, mean, rtol=1e-5, atol=1e-5)
