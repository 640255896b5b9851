"""Train on GLUE (Wang et al. 2018): CoLA, SST-2, MRPC, QNLI or MNLI, judged by GLUE's metrics.

Encoders classify; encoder-decoders (T5) write the label's word. Options: ``train_rows``,
``test_rows`` (None: all), ``max_length`` tokens, ``eval_batch_size``. A local dataset is a folder
that holds one folder a task, each with ``train.jsonl`` and ``validation.jsonl`` in GLUE's columns,
or CoLA's and SST-2's tab-separated files (``in_domain_train.tsv`` and so on; ``test.tsv`` of SST-2
is taken for GLUE's validation set).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
)

from hrp_lab.bench.tasks import Example, Task, TaskRequest
from hrp_lab.bench.tasks.answers import (
    by_length,
    existing,
    half_precision,
    load_rows,
    load_tokenizer,
)

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class Subset:
    """Names the columns, the words of the labels (T5's), and the split to be judged by."""

    columns: tuple[str, ...]
    words: tuple[str, ...]
    validation: str = "validation"


SUBSETS = {
    "cola": Subset(("sentence",), ("unacceptable", "acceptable")),
    "sst2": Subset(("sentence",), ("negative", "positive")),
    "mrpc": Subset(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "qnli": Subset(("question", "sentence"), ("entailment", "not_entailment")),
    "mnli": Subset(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
        validation="validation_matched",
    ),
}  # fmt: skip
_LOCAL_TSV = {
    ("cola", "train"): ("in_domain_train.tsv",),
    ("cola", "validation"): ("in_domain_dev.tsv", "out_of_domain_dev.tsv"),
    ("sst2", "train"): ("train.tsv",),
    ("sst2", "validation"): ("test.tsv",),
}


def load(request: TaskRequest) -> Task:
    """Load the task; see the module for its options."""
    options = request.settings(train_rows=None, test_rows=None, max_length=128, eval_batch_size=128)
    name = request.name.removeprefix("glue-")
    train = rows(request, name, "train")[: options["train_rows"]]
    test = rows(request, name, SUBSETS[name].validation)[: options["test_rows"]]
    tokenizer = load_tokenizer(request.model)
    make = _seq2seq if AutoConfig.from_pretrained(request.model).is_encoder_decoder else _classifier
    return make(request.model, name, tokenizer, (train, test), options)


def rows(request: TaskRequest, name: str, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split with GLUE's columns and ``label``."""
    json_lines, files = f"{name}/{split}.jsonl", _LOCAL_TSV.get((name, split))
    if files and request.folder and not (request.folder / json_lines).is_file():
        return [row for file in files for row in _tab_separated(request.folder / name / file)]
    return load_rows(request, json_lines, request.dataset or HUB_NAME, name, split)


def _tab_separated(path: Path) -> Iterator[dict[str, Any]]:
    """Read CoLA's format (source, label, mark, sentence) or SST-2's (sentence, label; header)."""
    for line in existing(path).read_text(encoding="utf-8").splitlines():
        fields = line.split("\t")
        if fields == ["sentence", "label"]:
            continue
        sentence, label = fields if len(fields) == 2 else (fields[3], fields[1])
        yield {"sentence": sentence, "label": int(label)}


Splits = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def _classifier(
    model: str, name: str, tokenizer: Any, splits: Splits, options: dict[str, Any]
) -> Task:
    subset = SUBSETS[name]
    collator = DataCollatorWithPadding(tokenizer)

    def encode(split: list[dict[str, Any]]) -> list[Example]:
        texts = [[row[column] for row in split] for column in subset.columns]
        encoded = tokenizer(*texts, truncation=True, max_length=options["max_length"])
        return [
            {key: encoded[key][index] for key in encoded} | {"labels": row["label"]}
            for index, row in enumerate(split)
        ]

    train, test = map(encode, splits)

    @torch.no_grad()
    def evaluate(trained: nn.Module) -> dict[str, float]:
        trained.eval()
        device = next(trained.parameters()).device
        labels, logits = [], []
        for rows in by_length(test, options["eval_batch_size"]):
            batch = collator(rows).to(device)
            labels.append(batch.pop("labels").cpu())
            with half_precision(device):
                logits.append(trained(**batch).logits.float().cpu())
        right, scores = torch.cat(labels), torch.cat(logits)
        loss = torch.nn.functional.cross_entropy(scores, right).item()
        return {"eval_loss": loss} | glue_metrics(name, right.tolist(), scores.argmax(-1).tolist())

    return Task(
        task_type="SEQ_CLS",
        train=train,
        collator=collator,
        load_model=lambda dtype: AutoModelForSequenceClassification.from_pretrained(
            model, num_labels=len(subset.words), dtype=dtype
        ),
        evaluate=evaluate,
        seeded_head=True,
    )


def _seq2seq(
    model: str, name: str, tokenizer: Any, splits: Splits, options: dict[str, Any]
) -> Task:
    columns, words = SUBSETS[name].columns, SUBSETS[name].words
    targets = tokenizer(list(words))["input_ids"]

    def encode(split: list[dict[str, Any]]) -> list[Example]:
        texts = [" ".join([name, *(f"{c}: {row[c]}" for c in columns)]) for row in split]
        encoded = tokenizer(texts, truncation=True, max_length=options["max_length"])["input_ids"]
        return [
            {"input_ids": ids, "labels": targets[row["label"]]}
            for ids, row in zip(encoded, split, strict=True)
        ]

    train, test = map(encode, splits)

    @torch.no_grad()
    def evaluate(trained: Any) -> dict[str, float]:
        trained.eval()
        device = next(trained.parameters()).device
        labels: list[int] = []
        predicted: list[str] = []
        for rows in by_length(test, options["eval_batch_size"]):
            inputs = [{"input_ids": row["input_ids"]} for row in rows]
            batch = tokenizer.pad(inputs, return_tensors="pt").to(device)
            with half_precision(device):
                output = trained.generate(**batch, max_new_tokens=8, do_sample=False)
            labels += [targets.index(row["labels"]) for row in rows]
            predicted += map(str.strip, tokenizer.batch_decode(output, skip_special_tokens=True))
        return glue_metrics(
            name,
            labels,
            [
                words.index(word) if word in words else (label + 1) % len(words)
                for word, label in zip(predicted, labels, strict=True)
            ],  # a word that is no label counts as a wrong class
        )

    return Task(
        task_type="SEQ_2_SEQ_LM",
        train=train,
        collator=DataCollatorForSeq2Seq(tokenizer),
        load_model=lambda dtype: AutoModelForSeq2SeqLM.from_pretrained(model, dtype=dtype),
        evaluate=evaluate,
    )


def glue_metrics(name: str, labels: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """Return GLUE's metrics of a task: Matthews correlation, accuracy, or accuracy and F1.

    >>> glue_metrics("cola", [0, 1, 1, 0], [0, 1, 1, 0])
    {'matthews_correlation': 1.0, 'accuracy': 1.0}
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    own = {"cola": ("matthews_correlation", matthews_corrcoef), "mrpc": ("f1", f1_score)}
    wanted = [own[name]] if name in own else []
    wanted.append(("accuracy", accuracy_score))
    return {metric: float(score(labels, predicted)) for metric, score in wanted}
