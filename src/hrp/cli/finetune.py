"""``hrp finetune`` trains encoder-decoders and classifiers from a preheated start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import transformers
from accelerate import PartialState
from peft import get_peft_model
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    set_seed,
)
from transformers.hf_argparser import HfArg
from trl import ScriptArguments, get_quantization_config

from hrp.cli.arguments import DataArguments, HRPArguments, LoraModelConfig, OutputArguments, parse
from hrp.cli.datasets import (
    check_columns,
    check_texts,
    column_names,
    load_splits,
    split_of,
    with_templates,
)
from hrp.cli.failures import UsageError, reported
from hrp.cli.running import Request, carry_out
from hrp.cli.sft import check_common, held_out

DESCRIPTION = """\
Fine-tune an encoder-decoder (--task seq2seq: columns prompt, completion) or a classifier (--task
classification: columns label, text, for pairs text_pair) with a preheated LoRA, by HF's trainers.
"""
EXAMPLE = """\
  hrp finetune --task classification --model_name_or_path FacebookAI/roberta-base \\
      --dataset_name stanfordnlp/sst2 --prompt_template '{sentence}' --lora_r 8 \\
      --learning_rate 4e-4 --output_dir runs/sst2
"""
_TEXTS = ("text", "text_pair")


@dataclass
class FinetuneArguments:
    """Adds what TRL's and HF's arguments lack for these tasks."""

    task: Literal["seq2seq", "classification"] = HfArg(help="Kind of model; required.")
    label_column: str = HfArg(default="label", help="Column of the classes.")
    max_length: int = HfArg(default=512, help="Most tokens of a text; the rest is cut.")
    test_split_size: float | None = HfArg(
        default=None, help="Share of the training rows to hold out as the test split."
    )
    trust_remote_code: bool = HfArg(default=False, help="Run code that comes with the model.")


@dataclass
class FinetuneRequest(Request):
    """Holds what `hrp finetune` was given."""

    finetune: FinetuneArguments


def main(argv: list[str]) -> int:
    """Run ``hrp finetune``; returns the exit status."""
    return reported("finetune", lambda: _run(argv))


def _run(argv: list[str]) -> int:
    ours = (HRPArguments, DataArguments, OutputArguments)
    theirs = (ScriptArguments, Seq2SeqTrainingArguments, LoraModelConfig)
    types = [*ours, *theirs, FinetuneArguments]
    request = FinetuneRequest(*parse("finetune", DESCRIPTION, EXAMPLE, types, argv))
    check_common(request.training, request.model)
    classifies = request.finetune.task == "classification"
    request.model.lora_task_type = "SEQ_CLS" if classifies else "SEQ_2_SEQ_LM"
    return carry_out("finetune", request, _classifier if classifies else _seq2seq)


def _seq2seq(request: FinetuneRequest) -> Any:
    data, limit = request.data, request.finetune.max_length
    templates = {"prompt": data.prompt_template, "completion": data.completion_template}
    tokenizer = _tokenizer(request)

    def encode(rows: dict[str, list[str]]) -> Any:
        return tokenizer(
            rows["prompt"], text_target=rows["completion"], truncation=True, max_length=limit
        )

    def prepared(split: Any) -> Any:
        rows = with_templates(split, templates)
        remedy = "for others, pass --prompt_template and --completion_template"
        check_columns(rows, [{"prompt", "completion"}], remedy)
        check_texts(rows, {"prompt", "completion"})
        return rows.map(encode, batched=True, remove_columns=column_names(rows))

    train, test = (split and prepared(split) for split in _splits(request))
    model = _lora_model(request, "AutoModelForSeq2SeqLM", tokenizer)
    collator = DataCollatorForSeq2Seq(tokenizer, model=model)
    return Seq2SeqTrainer(model, request.training, collator, train, test, tokenizer)


def _classifier(request: FinetuneRequest) -> Any:
    flags, template = request.finetune, request.data.prompt_template
    if request.data.completion_template is not None:
        raise UsageError("`--completion_template` goes with `--task seq2seq`")
    splits = _splits(request)
    labels = _labels(splits[0], flags.label_column)
    tokenizer = _tokenizer(request)

    def encode(rows: dict[str, list[Any]]) -> Any:
        texts = [rows[name] for name in _TEXTS if name in rows]
        encoded = tokenizer(*texts, truncation=True, max_length=flags.max_length)
        given = rows[flags.label_column]
        if unknown := [value for value in given if value not in labels]:
            names = list(labels.values())
            raise UsageError(f"label {unknown[0]!r} is none of the training data's {names}")
        encoded["labels"] = [list(labels).index(value) for value in given]
        return encoded

    def prepared(split: Any) -> Any:
        rows = with_templates(split, {"prompt": template}, keep=(flags.label_column,))
        if template is not None:
            rows = rows.rename_column("prompt", "text")
        check_columns(rows, [{"text", flags.label_column}], "for others, pass --prompt_template")
        check_texts(rows, _TEXTS)
        return rows.map(encode, batched=True, remove_columns=column_names(rows))

    train, test = (split and prepared(split) for split in splits)
    model = _lora_model(
        request,
        "AutoModelForSequenceClassification",
        tokenizer,
        id2label=dict(enumerate(labels.values())),
        ignore_mismatched_sizes=True,  # a base's head for other classes gives way to a fresh one
        label2id={name: number for number, name in enumerate(labels.values())},
    )
    return Trainer(  # which pads, as it is given a tokenizer
        model, request.training, None, train, test, tokenizer, compute_metrics=_accuracy
    )


def _splits(request: FinetuneRequest) -> tuple[Any, Any]:
    """Return training data and, where evaluation is asked for, test data (else None)."""
    script = request.script
    share, seed = request.finetune.test_split_size, request.training.seed
    splits = held_out(load_splits(script, request.data), script, share, seed)
    train = split_of(splits, script.dataset_train_split, "dataset_train_split")
    if request.training.eval_strategy == "no":
        return train, None
    return train, split_of(splits, script.dataset_test_split, "dataset_test_split")


def _labels(dataset: Any, column: str) -> dict[Any, str]:
    """Return the names of the classes by their value, in the order of the classifier's outputs.

    Raises ``UsageError`` where the training data's column holds no classes.
    """
    columns = column_names(dataset)
    if column not in columns:
        raise UsageError(f"`--label_column` must be one of {columns}, got {column!r}")
    names = getattr(dataset.features[column], "names", None)
    if names is not None:
        return dict(enumerate(names))
    values = set(dataset.unique(column))
    if not all(isinstance(value, int | str) for value in values) or len(values) < 2:
        raise UsageError(
            f"column {column!r} must hold two or more classes, numbers or words, got "
            f"{sorted(map(str, values))[:5]}"
        )
    return {value: str(value) for value in sorted(values, key=lambda v: (str(type(v)), v))}


def _tokenizer(request: FinetuneRequest) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(
        request.model.model_name_or_path,
        revision=request.model.model_revision,
        trust_remote_code=request.finetune.trust_remote_code,
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _lora_model(request: FinetuneRequest, auto_class: str, tokenizer: Any, **settings: Any) -> Any:
    """Load the base model and put the LoRA on it that the flags describe."""
    flags, training = request.model, request.training
    set_seed(training.seed)  # of the classifier's head and of LoRA's own start
    quantization = get_quantization_config(flags)
    model = getattr(transformers, auto_class).from_pretrained(
        flags.model_name_or_path,
        revision=flags.model_revision,
        dtype=flags.dtype,
        attn_implementation=flags.attn_implementation,
        trust_remote_code=request.finetune.trust_remote_code,
        quantization_config=quantization,
        device_map={"": PartialState().process_index} if quantization else None,
        **settings,
    )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    model = get_peft_model(model, flags.lora_config())
    if training.gradient_checkpointing:
        model.enable_input_require_grads()
    return model


def _accuracy(predicted: Any) -> dict[str, float]:
    logits, labels = predicted
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": float((logits.argmax(-1) == labels).mean())}
