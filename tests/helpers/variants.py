"""List every way in which PEFT makes a LoRA, with its settings and what HRP does with it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.tuners_utils import replicate_layers
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM, TorchAoConfig

from helpers.architectures import ARCHITECTURES
from helpers.tiny import collate, tiny_llama, token_rows

Batches = tuple[list[Any], Callable | None]
BF16, FP16 = torch.bfloat16, torch.float16
LINEAR = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


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


def rows_of_tokens() -> Batches:
    return [collate(token_rows(4, seed=seed)) for seed in (1, 2)], None


def ids_for_layers() -> Batches:
    return [torch.arange(24).view(4, 6) % 20], lambda model, ids: (model(ids) - 1).square().mean()


@dataclass(frozen=True)
class Variant:
    """An adapter's settings on a base model, with the error if HRP refuses them.

    ``refused`` is a pattern of that error; ``data`` gives batches and the loss function as
    `hrp.preheat` takes them; ``needs`` is the library without which the base cannot be made.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    make: Callable[[], nn.Module] = tiny_llama
    data: Callable[[], Batches] = rows_of_tokens
    dtype: torch.dtype | None = None
    autocast_adapter: bool = True
    config_class: type[LoraConfig] = LoraConfig
    needs: str | None = None

    @property
    def half(self) -> bool:
        """Tell whether the adapter itself is in half precision."""
        return self.dtype is not None and not self.autocast_adapter

    def base(self) -> nn.Module:
        torch.manual_seed(0)
        base = self.make()
        return base if self.dtype is None else base.to(self.dtype)

    def reference(self) -> nn.Module:
        """Return the model that an adapter without effect computes: the base, layers replicated."""
        base = self.base()
        if layers := self.settings.get("layer_replication"):
            replicate_layers(base, layers)
        return base

    def config(self, **changes: Any) -> LoraConfig:
        defaults = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR}
        return self.config_class(**defaults | self.settings | changes)

    def adapt(self, base: nn.Module, config: LoraConfig) -> PeftModel:
        torch.manual_seed(1)
        return get_peft_model(base, config, autocast_adapter_dtype=self.autocast_adapter)

    def model(self, **changes: Any) -> PeftModel:
        return self.adapt(self.base(), self.config(**changes))


def on_layers(*names: str, **settings: Any) -> Variant:
    settings = {"r": 2, "target_modules": list(names), **settings}
    return Variant(settings, make=Layers, data=ids_for_layers)


def on_architecture(name: str) -> Variant:
    architecture = ARCHITECTURES[name]
    settings = {"r": 2, **architecture.lora}
    return Variant(
        settings, make=architecture.make, data=lambda: ([architecture.batch()] * 2, None)
    )


def tied_llama() -> nn.Module:
    return tiny_llama(tie_word_embeddings=True)


def started_by(name: Any, refused: str | None = None) -> Variant:
    return Variant({"init_lora_weights": name}, refused)


def other_form(name: str, **settings: Any) -> Variant:
    """Describe a LoRA whose update is more, or other, than ``scaling * lora_B @ lora_A``."""
    return Variant(settings, f"of the LoRA variant {name}")


def quantised(settings: Callable[[], Any]) -> Callable[[], nn.Module]:
    """Make a tiny Llama as transformers loads and quantises it; 64 is the block size of 4-bit."""

    def make() -> nn.Module:
        with tempfile.TemporaryDirectory() as folder:
            tiny_llama(hidden_size=64, intermediate_size=64).save_pretrained(folder)
            return LlamaForCausalLM.from_pretrained(folder, quantization_config=settings())

    return make


def int8_of_torchao() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def nf4() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def int8_of_bitsandbytes() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(load_in_8bit=True)


VARIANTS = {
    "plain": Variant(),
    "rsLoRA": Variant({"use_rslora": True}),
    "DoRA": Variant({"use_dora": True}),
    "lora_bias": on_layers("linear", lora_bias=True),
    "bias='lora_only'": Variant({"bias": "lora_only"}),
    "lora_dropout": Variant({"lora_dropout": 0.2}),
    "rank_pattern, alpha_pattern": Variant(
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5}}
    ),
    "an odd rank": Variant({"r": 3}),
    "layers_to_transform": Variant({"target_modules": ["q_proj"], "layers_to_transform": [1]}),
    "layer_replication": Variant({"layer_replication": [[0, 2], [1, 2]]}),
    "exclude_modules": Variant({"exclude_modules": ["down_proj"]}),
    "target_modules='all-linear'": Variant({"target_modules": "all-linear"}),
    "target_modules as a regex": Variant({"target_modules": r".*\.[qv]_proj"}),
    "modules_to_save": Variant({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "trainable_token_indices": Variant(
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 5]}}
    ),
    "target_parameters (experts)": on_architecture("Mixtral"),
    "tied embedding and head": Variant(
        {"target_modules": ["q_proj", "embed_tokens"]}, make=tied_llama
    ),
    "ensure_weight_tying": Variant(
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        "`ensure_weight_tying` must be False",
        make=tied_llama,
    ),
    "ensure_weight_tying of modules_to_save": Variant(
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
        make=tied_llama,
    ),
    "nn.Embedding": on_layers("embedding"),
    "nn.Conv1d": on_layers("conv1d"),
    "nn.Conv2d": on_layers("conv2d"),
    "nn.Conv3d": on_layers("conv3d"),
    "nn.MultiheadAttention": on_layers("attention"),
    "DoRA on embedding and convolutions": on_layers(
        "embedding", "conv1d", "conv2d", "conv3d", use_dora=True
    ),
    "linear, embedding and conv1d": on_layers("linear", "embedding", "conv1d"),
    "transformers' Conv1D (GPT-2)": on_architecture("GPT-2"),
    "bf16 base, float32 adapter": Variant(dtype=BF16),
    "bf16 adapter": Variant(dtype=BF16, autocast_adapter=False),
    "fp16 base, float32 adapter": Variant(dtype=FP16),
    "fp16 adapter": Variant(dtype=FP16, autocast_adapter=False),
    "aLoRA": other_form("ALora", alora_invocation_tokens=[5], task_type="CAUSAL_LM"),
    "BD-LoRA": other_form(
        "BdLora",
        target_modules=["q_proj", "o_proj"],
        use_bdlora=BdLoraConfig(["q_proj"], ["o_proj"], nblocks=2),
    ),
    "KaSA": other_form("Kasa", kasa_config=KasaConfig()),
    "MonteCLoRA": other_form("Monteclora", monteclora_config=MontecloraConfig()),
    "VeLoRA": other_form("Velora", velora_config=VeloraConfig(num_groups=4)),
    "init_lora_weights='gaussian'": started_by("gaussian"),
    "init_lora_weights='orthogonal'": started_by("orthogonal"),
    "init_lora_weights='pissa'": started_by("pissa", "leave the base weights"),
    "init_lora_weights='olora'": started_by("olora", "leave the base weights"),
    "init_lora_weights='mica'": started_by("mica", "LoRA variant MiCA"),
    "init_lora_weights=False": started_by(False, "already changes the model"),
}

QUANTISED = {
    "torchao int8 base": Variant(make=quantised(int8_of_torchao), needs="torchao"),
    "bitsandbytes 8-bit base": Variant(make=quantised(int8_of_bitsandbytes), needs="bitsandbytes"),
    "bitsandbytes 4-bit (nf4) base": Variant(make=quantised(nf4), needs="bitsandbytes"),
}

ADALORA = Variant(
    {"r": 8, "init_r": 4, "total_step": 10},
    "must be of type LORA, got ADALORA",
    config_class=AdaLoraConfig,
)
