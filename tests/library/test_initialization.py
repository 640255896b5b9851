"""The start written into the adapter is the one that docs/method.md states."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import hrp
from helpers.faults import fault
from helpers.tiny import collate, fingerprint, loader, tiny_llama, token_rows, with_lora
from hrp.adapters.layers import lora_modules

CONFIG = hrp.HRPConfig(preheat_rank=16, preheat_steps=3, learning_rate=1e-2)


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=48, n_positions=32, n_embd=32, n_layer=2, n_head=2, pad_token_id=0)
    )


@torch.no_grad()
def logits(model, batch):
    model.eval()
    return model(input_ids=batch["input_ids"]).logits


@pytest.mark.parametrize("direction", ["A", "B"])
def test_adapter_is_a_bit_exact_no_op_at_step_0(model, batch, direction):
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    hrp.initialize_lora_hrp_weights(model, spectrum, direction)
    with model.disable_adapter():
        base = logits(model, batch)
    assert torch.equal(logits(model, batch), base)


@pytest.mark.parametrize("direction", ["A", "B", "AB"])
def test_base_weights_are_bit_identical(model, direction):
    before = {k: v for k, v in fingerprint(model).items() if "lora_" not in k}
    hrp.apply_hrp(model, hrp.HRPConfig(16, 2, direction), dataloader=loader())
    after = fingerprint(model)
    assert before
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name])


@pytest.mark.parametrize(("direction", "factor"), [("A", "lora_A"), ("B", "lora_B")])
def test_direction_factor_is_orthonormal_times_scale_and_the_other_zero(model, direction, factor):
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    hrp.initialize_lora_hrp_weights(model, spectrum, direction, scale=0.5)
    for module in lora_modules(model, "default").values():
        lora_A, lora_B = module.matrices()
        carrier, other = (lora_A, lora_B.mT) if factor == "lora_A" else (lora_B.mT, lora_A)
        assert torch.allclose(carrier @ carrier.mT, 0.25 * torch.eye(4), atol=1e-5)
        assert not other.any()


@pytest.mark.parametrize("truncation", ["loss", "frobenius"])
@pytest.mark.parametrize("rslora", [False, True])
def test_direction_ab_is_the_truncated_preheated_update(rslora, truncation):
    model = with_lora(tiny_llama(), use_rslora=rslora, alpha_pattern={"q_proj": 3})
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB", truncation=truncation)
    for name, module in lora_modules(model, "default").items():
        top = spectrum[name].truncated(4, truncation)
        assert torch.allclose(
            module.layer.get_delta_weight("default"), top.U * top.S @ top.Vh, atol=1e-6
        )


def test_ab_gives_the_logits_of_the_truncated_update(model, batch):
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB")
    reference = tiny_llama()
    state = reference.state_dict()
    for name, module in spectrum.items():
        top = module.truncated(4)
        state[f"{name}.weight"] += top.U * top.S @ top.Vh
    assert torch.allclose(logits(model, batch), logits(reference, batch), atol=1e-5)


def test_each_module_takes_its_own_rank():
    model = with_lora(tiny_llama(), rank_pattern={"v_proj": 2, "model.layers.0.mlp.up_proj": 7})
    hrp.apply_hrp(model, CONFIG, dataloader=loader())
    ranks = {name: module.rank for name, module in lora_modules(model, "default").items()}
    assert ranks["model.layers.1.self_attn.v_proj"] == 2
    assert ranks["model.layers.0.mlp.up_proj"] == 7
    assert ranks["model.layers.1.mlp.up_proj"] == 4


def test_one_spectrum_starts_adapters_of_several_ranks(model):
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    for rank in (1, 2, 8):
        other = with_lora(tiny_llama(), r=rank)
        hrp.initialize_lora_hrp_weights(other, spectrum, "A", truncation="frobenius")
        name = "model.layers.0.self_attn.q_proj"
        lora_A = lora_modules(other, "default")[name].matrices()[0]
        assert torch.equal(lora_A, spectrum[name].Vh[:rank])


@pytest.mark.parametrize("direction", ["A", "AB"])
def test_a_saved_adapter_loads_in_plain_peft_with_the_same_logits(
    model, batch, direction, tmp_path
):
    hrp.apply_hrp(model, hrp.HRPConfig(16, 3, direction), dataloader=loader())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.01
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert loaded.peft_config["default"].init_lora_weights is True


def test_by_default_the_adapter_keeps_what_preheating_learned(model):
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    started = [
        with_lora(tiny_llama()),
        hrp.apply_hrp(with_lora(tiny_llama()), CONFIG, dataloader=loader()),
    ]
    hrp.initialize_lora_hrp_weights(started[0], spectrum)
    for one in started:
        for name, module in lora_modules(one, "default").items():
            top = spectrum[name].truncated(module.rank)
            delta = module.layer.get_delta_weight("default")
            assert torch.allclose(delta, top.U * top.S @ top.Vh, atol=1e-6), name


def test_direction_b_trains_lora_a_first(model, batch):
    hrp.apply_hrp(model, hrp.HRPConfig(16, 2, "B"), dataloader=loader())
    model(**batch).loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert all(g.any() for n, g in gradients.items() if "lora_A" in n)
    assert not any(g.any() for n, g in gradients.items() if "lora_B" in n)


class Mixed(nn.Module):
    """Every layer kind of the core in one model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.conv1d = nn.Conv1d(8, 6, 3, padding=1)
        self.conv2d = nn.Conv2d(1, 5, 3, padding=1)
        self.linear = nn.Linear(6, 4)

    def forward(self, ids):
        hidden = self.conv1d(self.embedding(ids).transpose(1, 2))
        hidden = hidden + self.conv2d(hidden[:, None]).mean(1)
        return self.linear(hidden.transpose(1, 2))


@pytest.mark.parametrize("direction", ["A", "B", "AB"])
def test_embeddings_and_convolutions_start_at_their_preheated_update(direction):
    config = LoraConfig(r=2, target_modules=["embedding", "conv1d", "conv2d", "linear"])
    model = get_peft_model(Mixed(), config)
    ids = torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(0))
    spectrum = hrp.preheat(
        model,
        hrp.HRPConfig(4, 6, learning_rate=1e-2),
        dataloader=[ids],
        loss_fn=lambda model, ids: (model(ids) - 1).square().mean(),
    )
    hrp.initialize_lora_hrp_weights(model, spectrum, direction)
    assert set(spectrum) == {"embedding", "conv1d", "conv2d", "linear"}
    for name, module in lora_modules(model, "default").items():
        top = spectrum[name].truncated(2)
        expected = top.U * top.S @ top.Vh if direction == "AB" else torch.zeros(module.shape)
        delta = module.layer.get_delta_weight("default")
        delta = delta.T if name == "embedding" else delta.flatten(1)
        assert torch.allclose(delta, expected, atol=1e-6), name


def test_gpt2_conv1d_has_the_same_convention(batch):
    model = with_lora(tiny_gpt2(), target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB")
    for name, module in lora_modules(model, "default").items():
        top = spectrum[name].truncated(4)
        delta = module.layer.get_delta_weight("default")
        assert torch.allclose(delta.T, top.U * top.S @ top.Vh, atol=1e-6)
    assert torch.isfinite(logits(model, batch)).all()


def test_dora_magnitude_follows_the_preheated_update(batch):
    dora, plain = (with_lora(tiny_llama(), use_dora=flag) for flag in (True, False))
    spectrum = hrp.preheat(dora, CONFIG, dataloader=loader())
    for model in (dora, plain):
        hrp.initialize_lora_hrp_weights(model, spectrum, "AB", keep=False)
    assert torch.allclose(logits(dora, batch), logits(plain, batch), atol=1e-5)


def test_half_precision_adapters_keep_their_dtype(batch):
    base = tiny_llama().to(torch.bfloat16)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear")
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    hrp.apply_hrp(model, hrp.HRPConfig(16, 3, "A", learning_rate=1e-2), dataloader=loader())
    for module in lora_modules(model, "default").values():
        lora_A, _ = module.matrices()
        assert lora_A.dtype == torch.bfloat16
        assert torch.allclose((lora_A @ lora_A.mT).float(), torch.eye(4), atol=0.05)


def test_all_matching_rows_of_data_reach_the_demo_of_the_whole_chain(model):
    rows = collate(token_rows())
    hrp.apply_hrp(model, hrp.HRPConfig(16, 20, "AB", learning_rate=1e-2), dataloader=loader())
    with torch.no_grad():
        started = model(**rows).loss
        with model.disable_adapter():
            base = model(**rows).loss
    assert started < base


class Gated(nn.Module):
    """A linear layer behind a gate of one output, as in Qwen2-MoE, and its own loss."""

    def __init__(self):
        super().__init__()
        self.config = {"model_type": "gated"}
        self.embed = nn.Embedding(5, 6)
        self.up = nn.Linear(6, 8)
        self.conv = nn.Conv1d(8, 2, 1)
        self.gate = nn.Linear(6, 1)

    def forward(self, ids, labels=None, **_):
        x = self.embed(ids)
        up = self.conv(self.up(x).transpose(1, 2)).sum(1)
        logits = up * torch.sigmoid(self.gate(x)).squeeze(-1)
        return SimpleNamespace(logits=logits, loss=(logits - 1).square().mean())


def gated() -> PeftModel:
    torch.manual_seed(0)
    targets = ["embed", "up", "conv", "gate"]
    return get_peft_model(Gated(), LoraConfig(r=4, lora_alpha=8, target_modules=targets))


@fault(
    "Training",
    "a rank over `min(d_in, d_out)` of a module",
    command="`hrp.apply_hrp`, init",
    outcome="as PEFT; directions beyond add nothing, and learn",
)
@pytest.mark.parametrize("direction", ["A", "B", "AB"])
def test_a_rank_over_a_module_s_size_leaves_directions_that_add_nothing_and_learn(
    direction, caplog
):
    model, batch = gated(), {"ids": torch.randint(5, (4, 3))}
    spectrum = hrp.preheat(model, hrp.HRPConfig(6, 4, learning_rate=0.1), dataloader=[batch])
    assert (spectrum["gate"].rank, spectrum["conv"].rank, spectrum["up"].rank) == (1, 2, 6)
    with caplog.at_level("WARNING"):
        hrp.initialize_lora_hrp_weights(model, spectrum, direction)
    assert "over min(d_in, d_out) on 2 of 4 modules, such as 'conv'" in caplog.text
    assert len(caplog.records) == 1
    for name, rank in (("gate", 1), ("conv", 2)):
        module = lora_modules(model, "default")[name]
        lora_A, lora_B = module.matrices()
        update = module.scaling * lora_B @ lora_A
        start = spectrum.truncated({name: rank})[name]
        expected = start.U @ torch.diag(start.S) @ start.Vh if direction == "AB" else 0 * update
        assert torch.allclose(update, expected, atol=1e-5)
        assert lora_A[rank:].any(1).all()
        assert not lora_B[:, rank:].any()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**batch).loss.backward()
    optimizer.step()
    changed = model.base_model.model.gate.lora_B["default"].weight
    assert (changed != before["base_model.model.gate.lora_B.default.weight"])[:, 1:].all()


def test_with_auto_steps_a_rank_over_a_module_s_size_is_looked_at_as_far_as_it_goes():
    model, batch = gated(), {"ids": torch.randint(5, (4, 3))}
    config = hrp.HRPConfig(6, "auto", max_preheat_steps=8, subspace_window=2, learning_rate=0.01)
    assert hrp.preheat(model, config, dataloader=[batch])["gate"].rank == 1


@fault(
    "Training",
    "an adapter on the meta device",
    command="`hrp.preheat`, `hrp.apply_hrp`",
    outcome="refused with the remedy",
)
@pytest.mark.parametrize("force", [False, True])
def test_an_adapter_without_memory_is_refused_in_words(force):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    model = get_peft_model(tiny_llama(), config, low_cpu_mem_usage=True)
    message = r"must be in memory, got the meta device for module '.*'; make it without `low_cpu"
    spectrum = hrp.preheat(with_lora(tiny_llama()), CONFIG, dataloader=loader())
    with pytest.raises(ValueError, match=message):
        hrp.initialize_lora_hrp_weights(model, spectrum, force=force)
    with pytest.raises(ValueError, match=message):
        hrp.apply_hrp(model, CONFIG, dataloader=loader(), force=force)
    with pytest.raises(ValueError, match=message):
        hrp.preheat(model, CONFIG, dataloader=loader())


def test_an_adapter_prepared_for_compiled_hotswapping_is_preheated_and_started(batch):
    from peft.utils.hotswap import prepare_model_for_compiled_hotswap

    plain, padded = with_lora(tiny_llama()), with_lora(tiny_llama())
    prepare_model_for_compiled_hotswap(padded, target_rank=8)
    for model in (plain, padded):
        hrp.apply_hrp(model, CONFIG, dataloader=loader())
    assert torch.allclose(logits(plain, batch), logits(padded, batch), atol=1e-5)
    for module in lora_modules(padded, "default").values():
        lora_A, lora_B = module.matrices()
        assert lora_A.shape[0] == 8
        assert not lora_A[4:].any()
        assert not lora_B[:, 4:].any()
