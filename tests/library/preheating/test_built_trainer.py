"""A built trainer preheats as it is, and is afterwards as it was."""

from __future__ import annotations

import math
import random

import pytest
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from transformers import Trainer

import hrp
from helpers.built_trainers import BUILT, SEED, dpo, losses, packed, plain
from helpers.tiny import assert_identical, fingerprint, tiny_llama, token_rows, with_lora

CONFIG = hrp.HRPConfig(preheat_rank=4, preheat_steps=2, seed=SEED)


def adapter(trainer):
    state = get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("build", BUILT.values(), ids=BUILT)
def test_it_preheats_on_its_own_loss_and_then_trains_as_a_fresh_one_would(build, tmp_path):
    trainer = build(tmp_path)
    spectrum = hrp.preheat(trainer, CONFIG)
    assert hrp.initialize_lora_hrp_weights(trainer.model, spectrum) is trainer.model
    started = adapter(trainer)
    trainer.train()

    fresh = build(tmp_path)
    set_peft_model_state_dict(fresh.model, started)
    fresh.train()
    assert trainer.state.log_history[0].keys() == fresh.state.log_history[0].keys()
    assert losses(trainer) == losses(fresh)
    assert_identical(adapter(trainer), adapter(fresh))

    untouched = build(tmp_path)
    untouched.train()
    assert spectrum.provenance["losses"][0] == losses(untouched)[0]


def test_it_gives_the_spectrum_that_its_class_and_arguments_give(tmp_path):
    trainer = plain(tmp_path)
    built = hrp.preheat(trainer, CONFIG)
    made = hrp.preheat(
        plain(tmp_path).model,
        CONFIG,
        trainer_cls=Trainer,
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        data_collator=trainer.data_collator,
    )
    assert built.provenance["losses"] == made.provenance["losses"]
    assert built.provenance["learning_rate"] == made.provenance["learning_rate"]
    for name, module in made.items():
        assert torch.equal(module.U, built[name].U)
        assert torch.equal(module.S, built[name].S)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_after_an_interruption_the_trainer_holds_what_it_held_and_trains_as_ever(tmp_path, error):
    trainer = packed(tmp_path)
    compute_loss, calls = trainer.compute_loss, []

    def interrupted(*args, **kwargs):
        loss = compute_loss(*args, **kwargs)
        calls.append(loss)
        if len(calls) == 3:  # in the middle of the second step, with metrics to be reported
            assert trainer._metrics["train"]
            raise error
        return loss

    trainer.compute_loss = interrupted
    before = vars(trainer).copy(), vars(trainer.accelerator).copy(), fingerprint(trainer.model)
    drawn = random.getstate(), torch.get_rng_state()
    with pytest.raises(error):
        hrp.apply_hrp(trainer, CONFIG)
    for holder, held in ((trainer, before[0]), (trainer.accelerator, before[1])):
        assert vars(holder).keys() == held.keys()
        assert all(value is held[name] for name, value in vars(holder).items())
    assert_identical(before[2], fingerprint(trainer.model))
    assert drawn[0] == random.getstate()
    assert torch.equal(drawn[1], torch.get_rng_state())
    assert not trainer._metrics["train"]
    assert not trainer.accelerator._optimizers

    trainer.train()
    fresh = packed(tmp_path)
    fresh.train()
    assert losses(trainer) == losses(fresh)


def test_the_share_of_steps_is_that_of_the_packed_rows(tmp_path):
    trainer = packed(tmp_path, max_steps=-1, num_train_epochs=5, per_device_train_batch_size=1)
    share = hrp.HRPConfig(preheat_rank=4, preheat_steps=0.5)
    spectrum = hrp.preheat(trainer, share)
    trainer.train()
    rows = len(trainer.train_dataset)
    assert 2 < rows < 40
    assert trainer.state.max_steps == 5 * math.ceil(rows / 2)
    assert spectrum.provenance["steps"] == round(0.5 * trainer.state.max_steps)


def test_the_config_may_be_left_out(tmp_path):
    trainer = plain(tmp_path, max_steps=10)
    model = trainer.model
    spectrum = hrp.preheat(trainer)
    assert spectrum.provenance["config"] == hrp.HRPConfig(preheat_steps=2).to_dict()
    assert spectrum.provenance["learning_rate"] == pytest.approx(1e-3 * math.sqrt(4 / 128))
    assert hrp.apply_hrp(trainer) is model


def test_an_optimizer_that_it_was_built_with_gives_its_rate_and_is_the_one_that_trains(tmp_path):
    trainer = plain(tmp_path)
    trainer.optimizer = optimizer = torch.optim.SGD(
        [p for p in trainer.model.parameters() if p.requires_grad], lr=0.3
    )
    spectrum = hrp.preheat(trainer, CONFIG)
    assert spectrum.provenance["learning_rate"] == pytest.approx(0.3)
    assert trainer.optimizer is optimizer
    assert not optimizer.state


def test_a_trainer_that_was_started_is_refused(tmp_path):
    trainer = plain(tmp_path)
    trainer.train()
    with pytest.raises(ValueError, match="one that has taken 3 steps; call HRP before `train"):
        hrp.apply_hrp(trainer, CONFIG, force=True)


def test_what_a_built_trainer_has_of_its_own_is_not_taken_from_elsewhere(tmp_path):
    trainer = plain(tmp_path)
    with pytest.raises(TypeError, match=r"\['args', 'dataloader'\] go with a model; a built"):
        hrp.preheat(trainer, CONFIG, dataloader=[1], args=trainer.args)


def test_a_trainer_that_makes_its_model_anew_is_refused(tmp_path):
    def model_init():
        return with_lora(tiny_llama())

    trainer = Trainer(model_init=model_init, args=plain(tmp_path).args, train_dataset=token_rows())
    with pytest.raises(ValueError, match="`model_init` makes its model anew"):
        hrp.preheat(trainer, CONFIG)


def test_a_built_dpo_trainer_keeps_the_base_for_its_reference(tmp_path):
    trainer = dpo(tmp_path)
    reference = {k: v for k, v in fingerprint(trainer.model).items() if ".ref." in k}
    hrp.apply_hrp(trainer, CONFIG)  # direction "AB", and no warning, which would be an error
    after = {k: v for k, v in fingerprint(trainer.model).items() if ".ref." in k}
    assert reference
    assert_identical(reference, after)
