"""The whole chain works on many architectures: preheat, start, train, save, reload in PEFT."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import hrp
from helpers.architectures import ARCHITECTURES

CONFIG = hrp.HRPConfig(preheat_rank=6, preheat_steps=3, learning_rate=1e-2)


@pytest.mark.parametrize("direction", ["A", "B", "AB"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_preheat_start_train_save_and_reload(name, direction, tmp_path):
    architecture = ARCHITECTURES[name]
    pytest.importorskip(architecture.needs)

    def outputs(model, batch) -> torch.Tensor:
        with torch.no_grad():
            return getattr(model.eval()(**batch), architecture.output)

    torch.manual_seed(0)
    base = architecture.make()
    pristine, batch = copy.deepcopy(base), architecture.batch()
    model = get_peft_model(base, LoraConfig(r=2, **architecture.lora))
    at_base = outputs(model, batch)

    spectrum = hrp.preheat(model, CONFIG, dataloader=[batch], loss_fn=architecture.loss)
    assert torch.equal(outputs(model, batch), at_base)
    hrp.initialize_lora_hrp_weights(model, spectrum, direction)
    if direction == "AB":
        assert not torch.equal(outputs(model, batch), at_base)
    else:
        assert torch.allclose(outputs(model, batch), at_base, atol=1e-6)

    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    before = architecture.loss(model.train(), batch)
    before.backward()
    optimizer.step()
    assert architecture.loss(model, batch) != before
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(pristine, tmp_path)
    assert torch.allclose(outputs(loaded, batch), outputs(model, batch), atol=1e-6)
