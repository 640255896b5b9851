"""The callback starts an adapter as `apply_hrp` does, and refuses a loss that it cannot see."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from transformers import (
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)
from trl import SFTConfig

import hrp
from helpers.built_trainers import (
    SEED,
    SETTINGS,
    completion_only,
    dpo,
    language_model,
    losses,
    packed,
    pairs,
    plain,
    reward,
    seq2seq,
    sft,
    streamed,
    tokenizer,
    words,
)
from helpers.tiny import assert_identical, unchecked, with_lora

CONFIG = hrp.HRPConfig(preheat_rank=4, preheat_steps=2, seed=SEED)


def adapter(trainer):
    state = get_peft_model_state_dict(trainer.model, save_embedding_layers=False)
    return {name: tensor.clone() for name, tensor in state.items()}


def by_hand(build, folder, config=CONFIG):
    trainer = build(folder)
    hrp.apply_hrp(trainer, config)
    trainer.train()
    return trainer


def noisy(folder):
    return plain(folder, neftune_noise_alpha=5.0)


def staged(folder):
    """Return a trainer whose `train` sets a stage, and takes it down, outside of the trainer.

    As ms-swift's for classifiers, which patches the model's class.
    """

    class Staged(Trainer):
        ready = False

        def train(self, *args, **kwargs):
            Staged.ready = True
            try:
                return super().train(*args, **kwargs)
            finally:
                Staged.ready = False

        def compute_loss(self, *args, **kwargs):
            assert Staged.ready
            return super().compute_loss(*args, **kwargs)

    built = plain(folder)
    built.__class__ = Staged
    return built


@pytest.mark.parametrize("build", [plain, packed, dpo, noisy, staged])
def test_with_the_trainer_it_is_apply_hrp_of_that_trainer(build, tmp_path):
    trainer = build(tmp_path)
    trainer.add_callback(hrp.HRPCallback(CONFIG, trainer))
    trainer.train()
    expected = by_hand(build, tmp_path)
    assert losses(trainer) == losses(expected)
    assert_identical(adapter(trainer), adapter(expected))
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.parameters() if p.requires_grad}


@pytest.mark.parametrize("build", [plain, seq2seq, noisy])
def test_without_one_it_trains_on_the_model_s_own_loss_of_the_run_s_batches(build, tmp_path):
    trainer = build(tmp_path)
    trainer.add_callback(hrp.HRPCallback(CONFIG))
    trainer.train()
    expected = by_hand(build, tmp_path)
    assert losses(trainer) == losses(expected)
    assert_identical(adapter(trainer), adapter(expected))


@pytest.mark.parametrize("build", [packed, completion_only, streamed])
def test_without_one_it_follows_an_sft_trainer_to_rounding(build, tmp_path):
    trainer = build(tmp_path)
    trainer.add_callback(hrp.HRPCallback(CONFIG))
    trainer.train()
    torch.testing.assert_close(losses(trainer), losses(by_hand(build, tmp_path)))


def test_steps_are_a_share_of_the_run_s_and_the_rate_follows(tmp_path, monkeypatch):
    seen = {}

    def apply_hrp(model, config, **data):
        seen.update(hrp.preheat(model, config, **data).provenance)

    monkeypatch.setattr("hrp.integrations.callback.apply_hrp", apply_hrp)
    trainer = plain(tmp_path, max_steps=10)
    trainer.add_callback(hrp.HRPCallback())
    trainer.train()
    assert seen["steps"] == 2
    assert seen["learning_rate"] == pytest.approx(1e-3 * math.sqrt(4 / 128))


def test_a_resumed_run_is_left_alone(tmp_path):
    first = plain(tmp_path, save_strategy="steps", save_steps=2)
    first.train()
    resumed = plain(tmp_path)
    resumed.add_callback(hrp.HRPCallback(CONFIG, resumed))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_identical(adapter(resumed), adapter(first))


def test_a_config_of_another_kind_is_refused_before_the_run(tmp_path):
    with pytest.raises(TypeError, match=r"must be an `hrp\.HRPConfig`, got LoraConfig"):
        hrp.HRPCallback(LoraConfig())
    with pytest.raises(TypeError, match=r"must be an `hrp\.HRPConfig`, got dict"):
        unchecked(hrp.apply_hrp)(plain(tmp_path), {"preheat_rank": 8})


def test_a_run_that_begins_again_is_started_once(tmp_path):
    trainer = plain(tmp_path)
    callback = hrp.HRPCallback(CONFIG, trainer)
    trainer.add_callback(callback)
    trainer.train()
    trained = adapter(trainer)
    trainer.state.global_step = 0
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert_identical(trained, adapter(trainer))


def pairwise(folder):
    """Return DPO as LLaMA-Factory builds it: both answers in one batch, plain arguments."""

    class Pairwise(DataCollatorForSeq2Seq):
        def __call__(self, rows, return_tensors=None):
            halves = [{"input_ids": row[k], "labels": list(row[k])} for k in "ab" for row in rows]
            return super().__call__(halves, return_tensors)

    made = tokenizer()
    encode = [{k: made(words(n + s, 5)).input_ids for s, k in enumerate("ab")} for n in range(8)]
    args = Seq2SeqTrainingArguments(output_dir=str(folder), remove_unused_columns=False, **SETTINGS)
    return Seq2SeqTrainer(
        model=with_lora(language_model()),
        args=args,
        train_dataset=encode,
        data_collator=Pairwise(made),
    )


def preferences(folder):
    """Return plain arguments and rows of preferences."""
    built = pairwise(folder)
    built.train_dataset = pairs()
    return built


def without_labels(folder):
    built = plain(folder)
    built.data_collator = lambda rows: {"input_ids": torch.stack([r["input_ids"] for r in rows])}
    return built


def with_a_weight_each(folder):
    built = plain(folder)
    collate = built.data_collator
    built.args.remove_unused_columns = False
    built.data_collator = lambda rows: collate(rows) | {"weights": torch.ones(len(rows))}
    return built


def another_loss(folder):
    rows = Dataset.from_list([{"text": words(number, 6)} for number in range(11)])
    return sft(folder, rows, loss_type="dft")


def derived_from_sft(folder):
    """Return a trainer of TRL's own whose arguments are SFT's and more, as GKD's were."""
    config = type("GKDConfig", (SFTConfig,), {"__module__": "trl.gkd"})
    built = completion_only(folder)
    built.args.__class__ = config
    return built


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (dpo, "`DPOConfig` has a loss that is not the model's own"),
        (reward, "`RewardConfig` has a loss that is not"),
        (derived_from_sft, "`GKDConfig` has a loss that is not"),
        (another_loss, "`loss_type` 'dft' is not the model's own loss"),
        (preferences, r"columns \['chosen', 'rejected'\] are for a loss that is not"),
        (pairwise, "at most 2 rows, as `args` say, got 4, such as two for each pair"),
        (without_labels, r"must hold one of \['labels'\], got \['input_ids'\]"),
        (with_a_weight_each, r"the model does not know \['weights'\] of a batch"),
    ],
)
def test_without_one_a_loss_that_is_not_the_model_s_own_is_refused(build, told, tmp_path):
    trainer = build(tmp_path)
    trainer.add_callback(hrp.HRPCallback(CONFIG))
    before = adapter(trainer)
    with pytest.raises(ValueError, match=rf"{told}.*pass the trainer.*HRPCallback\(config, tr"):
        trainer.train()
    assert_identical(before, adapter(trainer))
