"""``hrp sft`` is `trl sft` with a preheated start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import datasets
from trl import (
    DatasetMixtureConfig,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    get_quantization_config,
)

from hrp.cli.arguments import DataArguments, HRPArguments, LoraModelConfig, OutputArguments, parse
from hrp.cli.datasets import check_columns, check_texts, load_splits, split_of, with_templates
from hrp.cli.failures import UsageError, reported
from hrp.cli.input_checks import as_names, check_lora, check_model, check_training
from hrp.cli.outputs import say
from hrp.cli.running import Request, carry_out

DESCRIPTION = """\
Supervised fine-tuning as `trl sft` does it, with LoRA started from a high-rank preheating. Takes
every flag of `trl sft`, from the command line or from --config FILE.yaml, and HRP's own.
"""
EXAMPLE = """\
  hrp sft --model_name_or_path Qwen/Qwen3-0.6B --dataset_path train.jsonl \\
      --prompt_template 'Question: {question}\\nAnswer:' --completion_template ' {answer}' \\
      --lora_r 16 --preheat_steps 0.2 --direction AB --learning_rate 2e-4 --output_dir runs/adapter
"""
# The columns that TRL's SFTTrainer recognises, each a set that suffices.
SFT_FORMS = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"input_ids"})


@dataclass
class SFTRequest(Request):
    """Holds what `hrp sft` and `hrp preheat` were given."""

    mixture: DatasetMixtureConfig


def main(argv: list[str]) -> int:
    """Run ``hrp sft``; returns the exit status."""
    return reported("sft", lambda: _run(argv))


def _run(argv: list[str]) -> int:
    request = parse_sft("sft", DESCRIPTION, EXAMPLE, argv)
    return carry_out("sft", request, build_trainer)


def parse_sft(command: str, description: str, example: str, argv: list[str]) -> SFTRequest:
    """Parse the flags of ``hrp sft`` and ``hrp preheat``; raises ``UsageError``."""
    ours = (HRPArguments, DataArguments, OutputArguments)
    theirs = (ScriptArguments, SFTConfig, LoraModelConfig, DatasetMixtureConfig)
    request = SFTRequest(*parse(command, description, example, [*ours, *theirs], argv))
    check_common(request.training, request.model)
    return request


def check_common(training: Any, model: LoraModelConfig) -> None:
    """Raise ``UsageError`` on what no command can do; LoRA is implied, and that is said."""
    if not model.model_name_or_path:
        raise UsageError("`--model_name_or_path` is needed: a hub id or a local folder")
    if training.resume_from_checkpoint is not None:
        raise UsageError("`--resume_from_checkpoint` does not know preheating; pass --resume")
    check_model(model.model_name_or_path)
    check_lora(model)
    check_training(training)
    model.lora_target_modules = as_names(model.lora_target_modules)
    if not model.use_peft:
        say("--use_peft is implied: HRP starts a LoRA")
        model.use_peft = True


def build_trainer(request: SFTRequest) -> SFTTrainer:
    """Make TRL's trainer as `trl sft` does, its model with LoRA; checks the data first."""
    training, model = request.training, request.model
    train, test = _data(request)
    training.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(training.model_init_kwargs or {}),
    }
    return SFTTrainer(
        model=model.model_name_or_path,
        args=training,
        train_dataset=train,
        eval_dataset=test,
        quantization_config=get_quantization_config(model),
        peft_config=model.lora_config(),
    )


def _data(request: SFTRequest) -> tuple[Any, Any]:
    """Return training data and, where asked for, test data, with columns that TRL knows."""
    script, data = request.script, request.data
    splits = load_splits(script, data, request.mixture)
    if not request.mixture.datasets:  # TRL divides a mixture itself
        splits = held_out(splits, script, request.mixture.test_split_size, request.training.seed)
    templates = {"prompt": data.prompt_template, "completion": data.completion_template}
    forms = (*SFT_FORMS, {request.training.dataset_text_field})

    def prepared(name: str, flag: str) -> Any:
        split = with_templates(split_of(splits, name, flag), templates)
        check_columns(split, forms, "for others, pass --prompt_template and --completion_template")
        check_texts(split, set().union(*forms))
        return split

    train = prepared(script.dataset_train_split, "dataset_train_split")
    evaluated = request.training.eval_strategy != "no"
    test = prepared(script.dataset_test_split, "dataset_test_split") if evaluated else None
    return train, test


def held_out(splits: Any, script: ScriptArguments, share: float | None, seed: int) -> Any:
    """Set a ``share`` of the training rows aside as test data; raises ``UsageError``."""
    train_name, test_name = script.dataset_train_split, script.dataset_test_split
    if share is None:
        return splits
    if not 0 < share < 1:
        raise UsageError(f"`--test_split_size` must be in (0, 1), got {share}")
    if test_name in splits:
        raise UsageError(
            f"the data have a split {test_name!r} already; leave out --test_split_size, or give "
            "the new one another name by --dataset_test_split"
        )
    train = split_of(splits, train_name, "dataset_train_split")
    if not isinstance(train, datasets.Dataset):
        raise UsageError("`--test_split_size` cannot divide streamed data; name a test split")
    parts = train.train_test_split(test_size=share, seed=seed)
    return {**splits, train_name: parts["train"], test_name: parts["test"]}
