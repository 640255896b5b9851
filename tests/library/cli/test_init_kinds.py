"""`hrp init` makes the library's own start of experts, embeddings and heads too."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import hrp
from helpers.commands import call
from helpers.tiny import VOCABULARY, collate, tiny_llama, token_rows

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def tiny_mixtral(experts: int = 4):
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
        num_experts_per_tok=2,
        pad_token_id=0,
    )
    return MixtralForCausalLM(config)


def preheated(folder, model, auto_class, batch=None, **targets):
    """Save a base model and a spectrum preheated on it; returns how to load the base."""
    model.save_pretrained(folder / "base")

    def load():
        return auto_class.from_pretrained(folder / "base")

    adapted = get_peft_model(load(), LoraConfig(r=2, **targets))
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=3, learning_rate=1e-2)
    found = hrp.preheat(adapted, config, dataloader=[batch or collate(token_rows(16))])
    found.save(folder / "spectrum")
    return load


def run(folder, *more) -> int:
    flags = ("--spectrum", folder / "spectrum", "--output_dir", folder / "start", "--lora_r", "2")
    return call("init", *flags, "--lora_alpha", "4", *more)


def assert_the_library_s_own(load, folder, **settings):
    """The adapter loads in plain PEFT to what `initialize_lora_hrp_weights` makes."""
    loaded = PeftModel.from_pretrained(load(), folder / "start", is_trainable=True)
    made = get_peft_model(load(), LoraConfig(r=2, lora_alpha=4, **settings))
    hrp.initialize_lora_hrp_weights(made, hrp.Spectrum.load(folder / "spectrum"))
    expected, found = made.state_dict(), loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert all(tensor.abs().sum() > 0 for name, tensor in found.items() if "lora_" in name)


@pytest.mark.parametrize("modules", [["q_proj"], []])
def test_experts_of_the_spectrum_are_in_the_adapter(tmp_path, capsys, modules):
    targets = {"target_modules": modules, "target_parameters": EXPERTS, "task_type": "CAUSAL_LM"}
    load = preheated(tmp_path, tiny_mixtral(), AutoModelForCausalLM, **targets)
    assert run(tmp_path, "--lora_dropout", "0") == 0
    assert_the_library_s_own(load, tmp_path, **targets)
    config = json.loads((tmp_path / "start" / "adapter_config.json").read_text())
    assert config["target_modules"] == modules
    assert set(config["target_parameters"]) == {"experts.down_proj", "experts.gate_up_proj"}
    saved = load_file(tmp_path / "start" / "adapter_model.safetensors")
    count = sum(tensor.numel() for tensor in saved.values())
    modules_count = len(hrp.Spectrum.load(tmp_path / "spectrum"))
    assert modules_count == 16 + 2 * len(modules)
    assert f"rank 2 on {modules_count} modules, {count:,} parameters" in capsys.readouterr().out


def test_a_single_expert_in_one_layer_is_named_whole(tmp_path):
    whole = ["model.layers.1.mlp.experts.down_proj"]
    targets = {"target_modules": [], "target_parameters": whole, "task_type": "CAUSAL_LM"}
    load = preheated(tmp_path, tiny_mixtral(), AutoModelForCausalLM, **targets)
    assert run(tmp_path, "--lora_dropout", "0") == 0
    assert_the_library_s_own(load, tmp_path, **targets)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "`lora_dropout` must be 0 with ['experts.down_proj', 'experts.gate_up_proj']"),
        (("--lora_dropout", "0", "--allocation", "energy"), "`--allocation` must be uniform with"),
    ],
)
def test_what_peft_cannot_do_with_experts_is_refused(tmp_path, capsys, flags, message):
    preheated(
        tmp_path,
        tiny_mixtral(),
        AutoModelForCausalLM,
        target_modules=[],
        target_parameters=EXPERTS,
    )
    assert run(tmp_path, *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "start").exists()


def test_experts_that_the_base_model_lacks_are_refused(tmp_path, capsys):
    targets = {"target_modules": [], "target_parameters": EXPERTS}
    preheated(tmp_path, tiny_mixtral(), AutoModelForCausalLM, **targets)
    tiny_mixtral(experts=8).save_pretrained(tmp_path / "base")
    assert run(tmp_path, "--lora_dropout", "0") == 2
    assert "`spectrum` lacks 16 of the adapter's 32 modules" in capsys.readouterr().err
    tiny_llama().save_pretrained(tmp_path / "llama")
    assert run(tmp_path, "--lora_dropout", "0", "--model_name_or_path", tmp_path / "llama") == 2
    assert "`spectrum` has 16 modules that the base model lacks" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_embeddings_and_heads_are_adapted_and_their_base_is_not_saved(tmp_path, name):
    targets = {"target_modules": [name, "q_proj"], "task_type": "CAUSAL_LM"}
    load = preheated(tmp_path, tiny_llama(), AutoModelForCausalLM, **targets)
    assert run(tmp_path) == 0
    assert_the_library_s_own(load, tmp_path, **targets)
    saved = load_file(tmp_path / "start" / "adapter_model.safetensors")
    assert any(name in key for key in saved)
    assert all("lora_" in key for key in saved)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("SEQ_CLS", "got SEQ_CLS; for a classifier, whose head `hrp init` cannot make, pass --sp"),
        ("TOKEN_CLS", "must be one of CAUSAL_LM, SEQ_2_SEQ_LM, got TOKEN_CLS\n"),
    ],
)
def test_a_task_that_cannot_be_started_is_refused(tmp_path, capsys, task, message):
    assert run(tmp_path, "--lora_task_type", task) == 2
    assert message in capsys.readouterr().err


def test_a_module_that_peft_passes_over_is_no_silent_loss(tmp_path, capsys, monkeypatch):
    from hrp.cli import skeleton

    targets = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    preheated(tmp_path, tiny_llama(), AutoModelForCausalLM, **targets)
    only = {"target_modules": ["q_proj"]}
    monkeypatch.setattr(skeleton, "spectrum_targets", lambda *_: only)
    assert run(tmp_path) == 2
    message = capsys.readouterr().err
    assert "does not adapt 2 of the spectrum's 4 modules here, such as ['model.layers.0" in message
    assert "name those to adapt in `--lora_target_modules`" in message
    assert not (tmp_path / "start").exists()
    assert run(tmp_path, "--lora_target_modules", "q_proj") == 0
