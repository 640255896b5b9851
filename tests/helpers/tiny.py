"""Tiny models and data, made offline, and comparisons of models."""

from __future__ import annotations

import inspect

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 48


def tiny_llama(seed: int = 0, **overrides) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | overrides))


def with_lora(model, seed: int = 1, **settings) -> PeftModel:
    torch.manual_seed(seed)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    return get_peft_model(model, LoraConfig(**defaults | settings))


def token_rows(count: int = 32, length: int = 12, seed: int = 2) -> list[dict[str, torch.Tensor]]:
    """Rows with a pattern to learn: each token follows from the one before."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(1, VOCABULARY, (count, 1), generator=generator)
    ids = (start + 7 * torch.arange(length)) % (VOCABULARY - 1) + 1
    return [{"input_ids": row, "labels": row.clone()} for row in ids]


def collate(rows):
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def loader(batch_size: int = 8, **settings) -> DataLoader:
    return DataLoader(token_rows(**settings), batch_size=batch_size, collate_fn=collate)


def fingerprint(model) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_identical(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


def unchecked(function):
    """Return the function without beartype, as a user runs it, to see its own message."""
    return inspect.unwrap(function)
