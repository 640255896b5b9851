"""HRP needs the adapter's factors only, so the base may be quantised to 4 or 8 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import hrp
from helpers.tiny import collate, tiny_llama, token_rows

pytestmark = pytest.mark.filterwarnings("ignore")  # the back ends' own

CONFIG = hrp.HRPConfig(preheat_rank=8, preheat_steps=3, learning_rate=1e-2)
# Cosine of the leading direction with that of the full-precision base: of tiny random weights,
# whose rounding to four bits is coarse. Chance is 0.1.
BACK_ENDS = {"torchao-int8": 0.9, "bitsandbytes-nf4": 0.5, "bitsandbytes-int8": 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("base")
    # Wide enough for a block of nf4.
    tiny_llama(hidden_size=64, intermediate_size=64).save_pretrained(path)
    return path


def quantised(back_end: str, folder: Path) -> torch.nn.Module:
    kind, _, form = back_end.partition("-")
    pytest.importorskip(kind)
    if kind == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        config = TorchAoConfig(Int8WeightOnlyConfig())
    elif form == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": device}
    )


def adapted(base: torch.nn.Module) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))


@pytest.mark.parametrize("prepared", [False, True], ids=["", "prepare_model_for_kbit_training"])
@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_a_quantised_base_is_preheated_started_trained_and_reloaded(
    folder, tmp_path, back_end, prepared
):
    base = quantised(back_end, folder)
    if prepared:
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True)
    model = adapted(base)
    batch = {key: value.to(base.device) for key, value in collate(token_rows(4)).items()}
    logits = model.eval()(**batch).logits
    spectrum = hrp.preheat(model, CONFIG, dataloader=[batch])
    # Back ends repack their weights when a mode changes: what the model computes is what counts.
    assert torch.equal(model.eval()(**batch).logits, logits)
    for direction in ("A", "B"):
        hrp.initialize_lora_hrp_weights(model, spectrum, direction)
        assert torch.equal(model.eval()(**batch).logits, logits)
    hrp.initialize_lora_hrp_weights(model, spectrum, "AB")
    kept = model(**batch).loss.item()
    assert kept < spectrum.provenance["losses"][0]
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model.train()(**batch).loss.backward()
    optimizer.step()
    assert model.eval()(**batch).loss.item() < kept
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(quantised(back_end, folder), tmp_path)
    assert torch.allclose(loaded(**batch).logits, model.eval()(**batch).logits, atol=1e-2)


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_the_direction_is_near_that_of_the_full_base(folder, back_end):
    full = AutoModelForCausalLM.from_pretrained(folder)
    batch = collate(token_rows(8))
    spectra = []
    for base in (full, quantised(back_end, folder)):
        model = adapted(base)
        moved = {key: value.to(base.device) for key, value in batch.items()}
        spectra.append(hrp.preheat(model, CONFIG, dataloader=[moved]))
    for name, cosines in spectra[0].subspace_alignment(spectra[1], 1).items():
        assert cosines.min() > BACK_ENDS[back_end], name
