"""Every way in which PEFT makes a LoRA: its settings, and what HRP does with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from architectures import ARCHITECTURES
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from conftest import collate, tiny_llama, token_rows, with_lora


class Layers(nn.Module):
    """One layer of each kind that PEFT adapts, in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.conv1d = nn.Conv1d(8, 8, 3, padding=1)
        self.conv2d = nn.Conv2d(1, 4, 3, padding=1)
        self.conv3d = nn.Conv3d(1, 4, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.linear = nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.conv1d(self.embedding(ids).transpose(1, 2))
        hidden = hidden + self.conv2d(hidden[:, None]).mean(1)
        hidden = hidden + self.conv3d(hidden[:, None, None]).mean((1, 2))
        hidden = hidden.transpose(1, 2)
        hidden = hidden + self.attention(hidden, hidden, hidden)[0]
        return self.linear(hidden)


@dataclass(frozen=True)
class Variant:
    """LoraConfig's settings on a tiny Llama, `Layers`, or another of `ARCHITECTURES`.

    ``refused`` matches the error.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    layers: bool = False
    tied: bool = False
    half: torch.dtype | None = None
    architecture: str | None = None

    def base(self) -> nn.Module:
        if self.layers:
            return Layers()
        if self.architecture:
            torch.manual_seed(0)
            return ARCHITECTURES[self.architecture].make()
        return tiny_llama(tie_word_embeddings=self.tied).to(self.half or torch.float32)

    def model(self, **changes: Any) -> PeftModel:
        base = self.base()
        if self.layers or self.half or self.architecture:
            torch.manual_seed(1)
            settings = {"r": 2, "target_modules": "all-linear"} | self.settings | changes
            return get_peft_model(
                base, LoraConfig(**settings), autocast_adapter_dtype=self.half is None
            )
        return with_lora(base, **self.settings | changes)

    def data(self) -> tuple[list[Any], Callable | None]:
        """Batches and the loss function, as `hrp.preheat` takes them."""
        if self.architecture:
            return [ARCHITECTURES[self.architecture].batch()], None
        if not self.layers:
            return [collate(token_rows(4, seed=seed)) for seed in (1, 2)], None
        ids = torch.arange(24).view(4, 6) % 20
        return [ids], lambda model, ids: (model(ids) - 1).square().mean()


def of_architecture(name: str) -> Variant:
    return Variant(ARCHITECTURES[name].lora, architecture=name)


def on_layers(*names: str, **extra: Any) -> Variant:
    return Variant({"target_modules": list(names)}, layers=True, **extra)


VARIANTS = {
    "plain": Variant(),
    "rsLoRA": Variant({"use_rslora": True}),
    "DoRA": Variant({"use_dora": True}),
    "lora_bias": Variant({"target_modules": ["linear"], "lora_bias": True}, layers=True),
    "bias='lora_only'": Variant({"bias": "lora_only"}),
    "lora_dropout": Variant({"lora_dropout": 0.2}),
    "rank_pattern, alpha_pattern": Variant(
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}
    ),
    "layers_to_transform": Variant({"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "exclude_modules": Variant({"exclude_modules": ["down_proj"]}),
    "target_modules as a regex": Variant({"target_modules": r".*\.[qv]_proj"}),
    "modules_to_save": Variant({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "trainable_token_indices": Variant(
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}}
    ),
    "tied embedding and head": Variant({"target_modules": ["q_proj", "embed_tokens"]}, tied=True),
    "nn.Embedding": on_layers("embedding"),
    "nn.Conv1d": on_layers("conv1d"),
    "nn.Conv2d": on_layers("conv2d"),
    "nn.Conv3d": on_layers("conv3d"),
    "nn.MultiheadAttention": on_layers("attention"),
    "GPT-2's Conv1D": of_architecture("GPT-2"),
    "target_parameters (experts)": of_architecture("Mixtral"),
    "bf16 adapter": Variant(half=torch.bfloat16),
    "init_lora_weights='gaussian'": Variant({"init_lora_weights": "gaussian"}),
    "init_lora_weights='orthogonal'": Variant({"init_lora_weights": "orthogonal"}),
    "init_lora_weights='pissa'": Variant({"init_lora_weights": "pissa"}, "leaves the base weights"),
    "init_lora_weights='olora'": Variant({"init_lora_weights": "olora"}, "leaves the base weights"),
    "init_lora_weights='mica'": Variant({"init_lora_weights": "mica"}, "LoRA variant MiCA"),
    "init_lora_weights=False": Variant({"init_lora_weights": False}, "already changes the model"),
}
