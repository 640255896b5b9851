"""Each PEFT variant is started right, or refused with the reason: none passes in silence."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

import hrp
from helpers.architectures import ARCHITECTURES
from helpers.tiny import assert_identical, collate, fingerprint, loader, tiny_llama, token_rows
from helpers.tiny import with_lora as lora
from helpers.variants import VARIANTS
from hrp.adapters.layers import lora_modules

# What PEFT and transformers say of these settings, whatever starts the adapter.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape.*lora_B.bias"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated"),
]

CONFIG = hrp.HRPConfig(preheat_rank=8, preheat_steps=3, learning_rate=1e-2)
STARTED = [name for name, variant in VARIANTS.items() if not variant.refused]
REFUSED = [name for name, variant in VARIANTS.items() if variant.refused]


def output(model, batch) -> torch.Tensor:
    with torch.no_grad():
        model.eval()
        result = model(input_ids=batch["input_ids"]) if isinstance(batch, dict) else model(batch)
    return getattr(result, "logits", result)


def preheated(variant, model):
    batches, loss_fn = variant.data()
    return hrp.preheat(model, CONFIG, dataloader=batches, loss_fn=loss_fn)


@pytest.mark.parametrize("direction", ["A", "B"])
@pytest.mark.parametrize("name", STARTED)
def test_no_op_at_step_0_and_base_untouched(name, direction):
    variant = VARIANTS[name]
    model, batch = variant.model(), variant.data()[0][0]
    before = fingerprint(model)
    spectrum = preheated(variant, model)
    assert_identical(before, fingerprint(model))
    hrp.initialize_lora_hrp_weights(model, spectrum, direction)
    factors = [f"lora_embedding_{f}" for f in "AB"] + ["lora_A", "lora_B", "lora_magnitude"]
    for key, value in fingerprint(model).items():
        if not any(factor in key for factor in factors):
            assert torch.equal(value, before[key]), key
    with model.disable_adapter():
        base = output(model, batch)
    # DoRA divides by a norm that it computes anew, equal up to rounding.
    assert torch.allclose(output(model, batch), base, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STARTED)
def test_ab_starts_at_the_truncated_update_and_reloads_in_plain_peft(name, tmp_path):
    variant = VARIANTS[name]
    model, batch = variant.model(), variant.data()[0][0]
    spectrum = preheated(variant, model)
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB")
    rough = 0.02 if variant.half else 1e-5
    for key, module in lora_modules(model, "default").items():
        lora_A, lora_B = (factor.float() for factor in module.matrices())
        top = spectrum[key].truncated(module.rank)
        error = (module.scaling * lora_B @ lora_A - top.U * top.S @ top.Vh).norm()
        assert error <= rough * top.S.norm(), key
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        variant.base(), tmp_path, autocast_adapter_dtype=variant.autocast_adapter
    )
    assert torch.allclose(output(loaded, batch), output(model, batch), atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_started_is_refused_with_the_reason(name):
    variant = VARIANTS[name]
    model = variant.model()
    before = fingerprint(model)
    with pytest.raises(ValueError, match=variant.refused):
        hrp.initialize_lora_hrp_weights(model, preheated(variant, model), "A")
    assert_identical(before, fingerprint(model))


def test_adalora_is_refused_as_it_has_no_pair_of_factors():
    config = AdaLoraConfig(target_modules=["q_proj"], init_r=4, total_step=10)
    model = get_peft_model(tiny_llama(), config)
    with pytest.raises(TypeError, match="must be of type LORA, got ADALORA"):
        hrp.preheat(model, CONFIG, dataloader=loader())


def test_several_adapters_on_one_model_are_started_one_at_a_time():
    model, batch = lora(tiny_llama()), collate(token_rows(4))
    base = output(model, batch)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    for adapter, direction in (("default", "A"), ("other", "B")):
        before = fingerprint(model)
        spectrum = hrp.preheat(model, CONFIG, dataloader=loader(), adapter_name=adapter)
        hrp.initialize_lora_hrp_weights(model, spectrum, direction, adapter_name=adapter)
        moved = {
            name for name, value in fingerprint(model).items() if not value.equal(before[name])
        }
        assert moved
        assert all(f".{adapter}." in name for name in moved)
        model.set_adapter(adapter)
        assert torch.equal(output(model, batch), base)


def one_step(model, optimizer, batch) -> float:
    loss = model.train()(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        return (model(**batch).loss - loss).item()


@pytest.mark.parametrize("direction", ["A", "B", "AB"])
def test_lora_plus_trains_from_every_direction(direction):
    model, batch = lora(tiny_llama()), collate(token_rows())
    hrp.apply_hrp(model, hrp.HRPConfig(8, 3, direction), dataloader=loader())
    optimizer = create_loraplus_optimizer(
        model, torch.optim.SGD, lr=0.1, loraplus_lr_ratio=4.0, weight_decay=0.0
    )
    assert one_step(model, optimizer, batch) < 0


def test_lora_fa_freezes_lora_a_and_trains_from_direction_a():
    model, batch = lora(tiny_llama()), collate(token_rows())
    hrp.apply_hrp(model, hrp.HRPConfig(8, 3, "A"), dataloader=loader())
    optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=8, lr=1e-2)
    before = fingerprint(model)
    assert one_step(model, optimizer, batch) < 0
    for name, value in fingerprint(model).items():
        if "lora_A" in name:
            assert torch.equal(value, before[name])


@pytest.mark.parametrize(("direction", "factor"), [("A", "A"), ("B", "B")])
def test_a_frozen_factor_keeps_its_direction_while_the_other_trains(direction, factor):
    model, batch = lora(tiny_llama()), collate(token_rows())
    hrp.apply_hrp(model, hrp.HRPConfig(8, 3, direction), dataloader=loader())
    hrp.freeze_factor(model, factor)
    before = fingerprint(model)
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.5)
    assert one_step(model, optimizer, batch) < 0
    moved = {name for name, value in fingerprint(model).items() if not value.equal(before[name])}
    assert moved
    assert not any(f"lora_{factor}" in name for name in moved)


def test_freezing_a_factor_of_zeros_is_refused():
    model = lora(tiny_llama())
    with pytest.raises(ValueError, match="must not be all zeros, got zeros in module"):
        hrp.freeze_factor(model, "B")


def test_multihead_attention_adapts_both_of_its_projections():
    model = VARIANTS["nn.MultiheadAttention"].model()
    shapes = {name: module.shape for name, module in lora_modules(model, "default").items()}
    assert shapes == {"attention": (24, 8), "attention.out_proj": (8, 8)}


def test_an_expert_that_no_token_reached_is_named():
    architecture = ARCHITECTURES["Mixtral"]
    torch.manual_seed(0)
    model = get_peft_model(architecture.make(), LoraConfig(r=2, **architecture.lora))
    gate = model.get_base_model().model.layers[0].mlp.gate
    gate.weight.data.zero_()
    gate.weight.data[0] = 100.0
    gate.top_k = model.config.num_experts_per_tok = 1
    batch = architecture.batch()
    hidden = model.get_base_model().model.embed_tokens.weight
    hidden.data.copy_(hidden.abs())  # every token now prefers expert 0
    with pytest.warns(UserWarning, match=r"no gradient has reached.*experts.*\.1,"):
        spectrum = hrp.preheat(model, hrp.HRPConfig(4, 3), dataloader=[batch])
    assert any(".1" in name for name in spectrum.provenance["unreached"])
    hrp.initialize_lora_hrp_weights(model, spectrum)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    plain = lora(tiny_llama())
    checkpointed = lora(tiny_llama())
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    checkpointed.enable_input_require_grads()
    expected, actual = (hrp.preheat(m, CONFIG, dataloader=loader()) for m in (plain, checkpointed))
    cosines = expected.subspace_alignment(actual, 4).values()
    assert min(cosine.min().item() for cosine in cosines) > 0.9999
    assert checkpointed.is_gradient_checkpointing
