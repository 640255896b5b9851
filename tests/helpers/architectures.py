"""Make tiny models of many architectures from their configs, with a batch that has a loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as tf

VOCABULARY, LENGTH, ROWS = 40, 8, 2


def ids(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)


def causal_batch() -> dict[str, torch.Tensor]:
    return {"input_ids": ids(), "labels": ids()}


def class_batch() -> dict[str, torch.Tensor]:
    return {"input_ids": ids(), "labels": torch.tensor([0, 1])}


def pixels(size: int = 8) -> torch.Tensor:
    return torch.randn(ROWS, 3, size, size, generator=torch.Generator().manual_seed(0))


def image_batch() -> dict[str, torch.Tensor]:
    return {"pixel_values": pixels(), "labels": torch.tensor([0, 1])}


def audio_batch() -> dict[str, torch.Tensor]:
    features = torch.randn(ROWS, 8, 16, generator=torch.Generator().manual_seed(0))
    return {"input_features": features, "labels": ids()}


def clip_batch() -> dict[str, Any]:
    return {"input_ids": ids(), "pixel_values": pixels(), "return_loss": True}


DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
IMAGES = {"image_size": 8, "patch_size": 4}


def decoder(name: str, **extra: Any) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        config = getattr(tf, f"{name}Config")(**DECODER | extra)
        return getattr(tf, f"{name}ForCausalLM")(config)

    return make


def gemma3() -> torch.nn.Module:
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**DECODER, head_dim=8))


def encoder(name: str, **extra: Any) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        config = getattr(tf, f"{name}Config")(**ENCODER | extra)
        return getattr(tf, f"{name}ForSequenceClassification")(config)

    return make


def gpt2() -> torch.nn.Module:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    )


def opt() -> torch.nn.Module:
    return tf.OPTForCausalLM(
        tf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            word_embed_proj_dim=16,
        )
    )


def t5() -> torch.nn.Module:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )


def vit() -> torch.nn.Module:
    config = {k: ENCODER[k] for k in ENCODER if k not in ("vocab_size", "max_position_embeddings")}
    return tf.ViTForImageClassification(tf.ViTConfig(**config, **IMAGES, num_labels=2))


def whisper() -> torch.nn.Module:
    return tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            vocab_size=VOCABULARY,
            num_mel_bins=8,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_source_positions=8,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=[],
            begin_suppress_tokens=[],
        )
    )


def clip() -> torch.nn.Module:
    text = tf.CLIPTextConfig(**ENCODER, projection_dim=8, bos_token_id=1, eos_token_id=2)
    vision = {k: ENCODER[k] for k in ENCODER if k not in ("vocab_size", "max_position_embeddings")}
    config = tf.CLIPConfig(
        text_config=text.to_dict(),
        vision_config={**vision, **IMAGES, "projection_dim": 8},
        projection_dim=8,
    )
    return tf.CLIPModel(config)


def unet() -> torch.nn.Module:
    with warnings.catch_warnings():  # that torch.jit is deprecated
        warnings.simplefilter("ignore")
        from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
    )


def noisy_batch() -> dict[str, Any]:
    states = torch.randn(ROWS, 4, 8, generator=torch.Generator().manual_seed(1))
    return {"sample": pixels(), "timestep": torch.tensor([1, 2]), "encoder_hidden_states": states}


def own_loss(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return model(**batch).loss


def denoising_loss(model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    return (model(**batch).sample - batch["sample"]).square().mean()


@dataclass(frozen=True)
class Architecture:
    """Says how to make a model, a batch for it and its loss, and where LoRA goes."""

    make: Callable[[], torch.nn.Module]
    batch: Callable[[], dict[str, Any]] = causal_batch
    lora: dict[str, Any] = field(default_factory=lambda: {"target_modules": "all-linear"})
    loss: Callable[[torch.nn.Module, dict[str, Any]], torch.Tensor] = own_loss
    output: str = "logits"
    needs: str = "transformers"


def targets(*names: str, **extra: Any) -> dict[str, Any]:
    return {"target_modules": list(names), **extra}


ARCHITECTURES = {
    "Llama": Architecture(decoder("Llama")),
    "Qwen3": Architecture(decoder("Qwen3", head_dim=8)),
    "Gemma3": Architecture(gemma3),
    "Mistral": Architecture(decoder("Mistral")),
    "Phi": Architecture(decoder("Phi")),
    "Mixtral": Architecture(
        decoder("Mixtral", num_local_experts=2),
        lora=targets(
            "q_proj", target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
        ),
    ),
    "GPT-2": Architecture(gpt2, lora=targets("c_attn", "c_fc", fan_in_fan_out=True)),
    "OPT": Architecture(opt),
    "T5": Architecture(t5),
    "BERT": Architecture(encoder("Bert"), class_batch, targets("query", "value")),
    "RoBERTa": Architecture(
        encoder("Roberta", pad_token_id=1), class_batch, targets("query", "value")
    ),
    "ViT": Architecture(vit, image_batch, targets("q_proj", "v_proj")),
    "Whisper": Architecture(whisper, audio_batch, targets("q_proj", "v_proj", "fc1")),
    "CLIP": Architecture(clip, clip_batch, targets("q_proj", "v_proj"), output="logits_per_image"),
    "UNet (diffusers)": Architecture(
        unet,
        noisy_batch,
        targets("to_q", "to_v", "conv1"),
        denoising_loss,
        output="sample",
        needs="diffusers",
    ),
}
