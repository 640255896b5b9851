"""Trainers of HF and TRL, built on tiny models and data as a user builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

from helpers.tiny import collate, tiny_llama, token_rows, with_lora
from hrp.demo import BASE

SEED = 3
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<eos>{% endfor %}"
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
SETTINGS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "max_steps": 3,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "report_to": [],
    "seed": SEED,
}


def words(number: int, count: int) -> str:
    return " ".join(WORDS[(number + 3 * step) % len(WORDS)] for step in range(count))


def prompts(number: int) -> dict[str, str]:
    return {"prompt": words(number, 3), "completion": " " + words(number + 1, 2 + number % 3)}


def tokenizer(template: str | None = None) -> Any:
    made = AutoTokenizer.from_pretrained(BASE)
    made.chat_template = template
    return made


def language_model(kind: Any = LlamaForCausalLM, **settings: Any) -> Any:
    """Return a tiny model with the vocabulary of the demo's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer().pad_token_id,
        eos_token_id=tokenizer().eos_token_id,
        bos_token_id=None,
        **settings,
    )
    return kind(config)


def lora(**settings: Any) -> LoraConfig:
    torch.manual_seed(1)
    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], **settings)


def plain(folder: Path, **settings: Any) -> Trainer:
    """Return HF's Trainer with a padding collator and dropout in the adapter."""
    return Trainer(
        model=with_lora(tiny_llama(), lora_dropout=0.1),
        args=TrainingArguments(output_dir=str(folder), **SETTINGS | settings),
        train_dataset=token_rows(11),
        data_collator=collate,
    )


def masked_at_random(folder: Path) -> Trainer:
    """Return HF's Trainer whose collator draws masks from a generator of its own."""
    made = tokenizer()
    made.add_special_tokens({"mask_token": "<eos>"})
    rows = [made(words(number, 6)) for number in range(11)]
    collator = DataCollatorForLanguageModeling(made, mlm_probability=0.4, seed=5)
    collator(rows[:2])  # its generator is in the middle of its way
    args = TrainingArguments(output_dir=str(folder), **SETTINGS)
    return Trainer(
        model=with_lora(language_model()), args=args, train_dataset=rows, data_collator=collator
    )


def seq2seq(folder: Path) -> Seq2SeqTrainer:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=48, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    model = with_lora(T5ForConditionalGeneration(config), target_modules=["q", "v"])
    args = Seq2SeqTrainingArguments(output_dir=str(folder), **SETTINGS)
    return Seq2SeqTrainer(
        model=model, args=args, train_dataset=token_rows(11), data_collator=collate
    )


def sft(folder: Path, rows: Any, template: str | None = None, **settings: Any) -> SFTTrainer:
    return SFTTrainer(
        model=language_model(),
        args=SFTConfig(output_dir=str(folder), max_length=32, **SETTINGS | settings),
        train_dataset=rows,
        processing_class=tokenizer(template),
        peft_config=lora(task_type="CAUSAL_LM"),
    )


def packed(folder: Path, **settings: Any) -> SFTTrainer:
    rows = Dataset.from_list([{"text": words(number, 5 + number % 7)} for number in range(40)])
    return sft(folder, rows, packing=True, packing_strategy="wrapped", **settings)


def completion_only(folder: Path) -> SFTTrainer:
    rows = Dataset.from_list([prompts(number) for number in range(11)])
    return sft(folder, rows, completion_only_loss=True)


def conversational(folder: Path) -> SFTTrainer:
    def turns(number: int) -> dict[str, Any]:
        row = prompts(number)
        asked = {"role": "user", "content": row["prompt"]}
        return {"messages": [asked, {"role": "assistant", "content": row["completion"]}]}

    rows = Dataset.from_list([turns(number) for number in range(11)])
    return sft(folder, rows, template=CHAT)


def streamed(folder: Path) -> SFTTrainer:
    def rows() -> Any:
        yield from ({"text": words(number, 6)} for number in range(11))

    return sft(folder, IterableDataset.from_generator(rows))


def pairs(count: int = 11) -> Dataset:
    def row(number: int) -> dict[str, str]:
        made = prompts(number)
        wrong = " " + words(number + 5, 3)
        return {"prompt": made["prompt"], "chosen": made["completion"], "rejected": wrong}

    return Dataset.from_list([row(number) for number in range(count)])


def dpo(folder: Path) -> DPOTrainer:
    """Return DPO on a PeftModel, whose start is copied for the reference."""
    return DPOTrainer(
        model=with_lora(language_model(), r=2),
        args=DPOConfig(
            output_dir=str(folder), max_length=32, gradient_checkpointing=False, **SETTINGS
        ),
        train_dataset=pairs(),
        processing_class=tokenizer(),
    )


def reward(folder: Path) -> RewardTrainer:
    return RewardTrainer(
        model=language_model(LlamaForSequenceClassification, num_labels=1),
        args=RewardConfig(output_dir=str(folder), max_length=32, **SETTINGS),
        train_dataset=pairs(),
        processing_class=tokenizer(),
        peft_config=lora(task_type="SEQ_CLS", modules_to_save=["score"]),
    )


def kto(folder: Path) -> KTOTrainer:
    rows = [{**prompts(number), "label": number % 2 == 0} for number in range(12)]
    return KTOTrainer(
        model=language_model(),
        args=KTOConfig(
            output_dir=str(folder), max_length=32, gradient_checkpointing=False, **SETTINGS
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=lora(task_type="CAUSAL_LM"),
    )


def grpo(folder: Path) -> GRPOTrainer:
    """Return GRPO, which samples its own answers, rewarded for being varied."""

    def varied(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(completion))) for completion in completions]

    rows = [{"prompt": words(number, 3)} for number in range(8)]
    settings = {"num_generations": 2, "max_completion_length": 6, "gradient_checkpointing": False}
    return GRPOTrainer(
        model=language_model(),
        reward_funcs=varied,
        args=GRPOConfig(output_dir=str(folder), **SETTINGS, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=lora(task_type="CAUSAL_LM"),
    )


BUILT = {
    "Trainer": plain,
    "a collator with a generator": masked_at_random,
    "Seq2SeqTrainer": seq2seq,
    "SFTTrainer, packed": packed,
    "SFTTrainer, completion only": completion_only,
    "SFTTrainer, conversational": conversational,
    "SFTTrainer, streamed": streamed,
    "DPOTrainer": dpo,
    "RewardTrainer": reward,
    "KTOTrainer": kto,
    "GRPOTrainer": grpo,
}


def losses(trainer: Trainer) -> list[float]:
    """Return the losses of all steps of a run."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
