"""An "AB" start keeps all that preheating has trained; "A" and "B" keep nothing."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

import hrp
from helpers.tiny import collate, loader, tiny_llama, token_rows, with_lora
from hrp.adapters.layers import lora_modules

CONFIG = hrp.HRPConfig(8, 6, learning_rate=1e-2)


def classifier(labels=3, seed=0):
    torch.manual_seed(seed)
    base = BertForSequenceClassification(
        BertConfig(vocab_size=48, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                   intermediate_size=48, max_position_embeddings=32, num_labels=labels)
    )  # fmt: skip
    lora = LoraConfig(
        r=2, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    return get_peft_model(base, lora)


def sentences(labels=3):
    rows = collate(token_rows(16))
    rows["labels"] = rows["input_ids"][:, 0] % labels
    return [rows]


def head(model):
    return next(p for n, p in model.named_parameters() if "modules_to_save.default.weight" in n)


def test_a_classifiers_head_is_kept_with_ab_and_left_alone_with_a_b_or_keep_false():
    model = classifier()
    before = head(model).detach().clone()
    spectrum = hrp.preheat(model, CONFIG, dataloader=sentences())
    assert torch.equal(head(model), before), "preheating must train a copy"
    name = "base_model.model.classifier.weight"
    assert sorted(spectrum.kept) == ["base_model.model.classifier.bias", name]
    assert not torch.equal(spectrum.kept[name], before)
    for direction, keep in (("A", True), ("B", True), ("AB", False)):
        hrp.initialize_lora_hrp_weights(model, spectrum, direction, keep=keep, force=True)
        assert torch.equal(head(model), before)
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB", force=True)
    assert torch.equal(head(model), spectrum.kept[name])
    assert head(model).requires_grad


def test_a_head_of_another_shape_is_refused_by_name_and_nothing_is_written():
    spectrum = hrp.preheat(classifier(), CONFIG, dataloader=sentences())
    other = classifier(labels=5)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"classifier.*adapter \(5,\), spectrum \(3,\).*keep=False"
    ):
        hrp.initialize_lora_hrp_weights(other, spectrum)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    hrp.initialize_lora_hrp_weights(other, spectrum, keep=False)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # PEFT 0.18 leaves it there
def test_an_adapter_without_the_head_says_so():
    spectrum = hrp.preheat(classifier(), CONFIG, dataloader=sentences())
    base = classifier().unload()
    headless = get_peft_model(base, LoraConfig(r=2, target_modules=["query", "value"]))
    with pytest.warns(UserWarning, match=r"has no 'base_model.model.classifier.bias' and 1 more"):
        hrp.initialize_lora_hrp_weights(headless, spectrum)


def test_what_is_kept_travels_in_the_folder(tmp_path):
    spectrum = hrp.preheat(classifier(), CONFIG, dataloader=sentences())
    spectrum.save(tmp_path / "spectrum")
    loaded = hrp.Spectrum.load(tmp_path / "spectrum")
    assert sorted(loaded.kept) == sorted(spectrum.kept)
    assert all(torch.equal(loaded.kept[name], value) for name, value in spectrum.kept.items())
    assert all(torch.equal(loaded[n].left_metric, m.left_metric) for n, m in spectrum.items())


def test_dora_is_preheated_as_dora_and_starts_with_its_magnitudes():
    model = with_lora(tiny_llama(), use_dora=True)
    config = hrp.HRPConfig(16, 12, learning_rate=1e-2)
    spectrum = hrp.preheat(model, config, dataloader=loader(), learning_rate=2e-2)
    hrp.initialize_lora_hrp_weights(model, spectrum)
    for name, module in lora_modules(model, "default").items():
        weight = module.layer.get_base_layer().weight.detach()
        cut = spectrum[name].truncated(module.rank)
        norms = (weight + cut.U * cut.S @ cut.Vh).norm(dim=1)
        ratio = spectrum.kept[f"{name}.lora_magnitude_vector"]
        assert (ratio - 1).abs().max() > 1e-3, "the magnitudes were not trained"
        magnitude = module.magnitude().detach()
        torch.testing.assert_close(magnitude, norms * ratio, rtol=1e-4, atol=1e-5)


def test_a_full_rank_dora_start_computes_what_preheating_computed():
    model = with_lora(tiny_llama(), r=16, use_dora=True)
    batch = collate(token_rows(4))
    seen = []

    def loss(model, batch):
        out = model(**batch)
        seen.append(out.logits.detach())
        return out.loss

    steps = 5
    spectrum = hrp.preheat(model, hrp.HRPConfig(16, steps, learning_rate=1e-2),
                           dataloader=[batch], loss_fn=loss)  # fmt: skip
    longer = hrp.preheat(model, hrp.HRPConfig(16, steps + 1, learning_rate=1e-2),
                         dataloader=[batch], loss_fn=loss)  # fmt: skip
    assert longer.provenance["steps"] == steps + 1
    hrp.initialize_lora_hrp_weights(model, spectrum)
    with torch.no_grad():
        started = model.train()(**batch).logits
    torch.testing.assert_close(started, seen[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_biases_and_token_rows_are_kept():
    model = with_lora(tiny_llama(), lora_bias=True, trainable_token_indices=[1, 2, 5])
    spectrum = hrp.preheat(model, CONFIG, dataloader=loader())
    rows = [name for name in spectrum.kept if "trainable_tokens_delta" in name]
    biases = [name for name in spectrum.kept if name.endswith("lora_B.bias")]
    assert len(rows) == 1
    assert len(biases) == len(spectrum)
    hrp.initialize_lora_hrp_weights(model, spectrum)
    values = {n.replace(".default", ""): p for n, p in model.named_parameters()}
    for name in rows + biases:
        assert torch.equal(values[name].detach(), spectrum.kept[name]), name


def test_magnitudes_and_heads_are_trained_at_fine_tunings_rate_and_factors_at_a_lower_one(
    monkeypatch,
):
    groups = {}
    step = torch.optim.AdamW.step

    def recorded(optimizer, *args, **kwargs):
        for group in optimizer.param_groups:
            groups[group["lr"]] = sum(p.numel() for p in group["params"])
        return step(optimizer, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    model = with_lora(tiny_llama(), use_dora=True)
    config = hrp.HRPConfig(16, 2, warmup_share=0.0)
    hrp.preheat(model, config, dataloader=loader(), total_steps=10, learning_rate=1e-2)
    magnitudes = sum(m.magnitude().numel() for m in lora_modules(model, "default").values())
    assert groups[1e-2] == magnitudes
    assert sorted(groups) == pytest.approx([1e-2 * (4 / 16) ** 0.5, 1e-2])
