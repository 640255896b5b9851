"""Preheating's length as a share of the run that it prepares."""

from __future__ import annotations

import itertools

import pytest
from datasets import Dataset
from peft import LoraConfig
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import SFTTrainer

import hrp
from helpers.built_trainers import packed, words
from helpers.tiny import collate, loader, token_rows
from hrp.preheating.plan import with_steps
from hrp.preheating.with_dataloader import DEFAULT_STEPS
from hrp.preheating.with_trainer import of_trainer

ROWS = token_rows(21)


def arguments(tmp_path, **settings) -> TrainingArguments:
    fixed = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"}
    return TrainingArguments(output_dir=str(tmp_path), **fixed, **settings)


class _StopAtOnce(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = True


@pytest.mark.parametrize(
    ("batch", "accumulation", "epochs", "drop_last", "max_steps"),
    [
        *((b, a, e, d, -1) for b, a, e, d in itertools.product((4, 5), (1, 4), (0.4, 3), (0, 1))),
        (4, 1, 3, 0, 7),
        (32, 1, 2, 0, -1),
    ],
)
def test_the_steps_foreseen_are_those_that_hf_trainer_counts(
    model, tmp_path, batch, accumulation, epochs, drop_last, max_steps
):
    args = arguments(
        tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs, dataloader_drop_last=bool(drop_last), max_steps=max_steps,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=args, train_dataset=ROWS, data_collator=collate, callbacks=[_StopAtOnce()]
    )
    share = of_trainer(hrp.HRPConfig(preheat_steps=0.9), trainer, LoraConfig()).preheat_steps
    trainer.train()
    assert share == max(1, round(0.9 * trainer.state.max_steps))


@pytest.mark.parametrize(("share", "steps"), [(0.5, 5), (None, 2), (0.01, 1), (3, 3)])
def test_a_share_is_one_of_the_trainers_own_steps(model, tmp_path, share, steps):
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=share, learning_rate=1e-3)
    args = arguments(tmp_path, max_steps=10, per_device_train_batch_size=4)
    spectrum = hrp.preheat(
        model, config, trainer_cls=Trainer, args=args, train_dataset=ROWS, data_collator=collate
    )
    assert spectrum.provenance["steps"] == steps
    assert spectrum.provenance["config"]["preheat_steps"] == steps


@pytest.mark.parametrize(
    ("task_type", "steps"), [("SEQ_CLS", 5), ("TOKEN_CLS", 5), ("CAUSAL_LM", 20), (None, 20)]
)
def test_classifiers_are_preheated_for_less_by_default(task_type, steps):
    lora = LoraConfig(task_type=task_type)
    assert with_steps(hrp.HRPConfig(), 100, lora).preheat_steps == steps
    assert with_steps(hrp.HRPConfig(preheat_steps=0.3), 100, lora).preheat_steps == 30


def test_with_a_dataloader_the_default_is_a_number(model):
    spectrum = hrp.preheat(model, hrp.HRPConfig(preheat_rank=8), dataloader=loader(2))
    assert spectrum.provenance["steps"] == DEFAULT_STEPS


def test_a_share_is_refused_with_a_dataloader(model):
    with pytest.raises(
        ValueError, match=r"number of steps or 'auto'.*got 0\.2;.*`total_steps` with `dataloader`"
    ):
        hrp.preheat(model, hrp.HRPConfig(preheat_rank=8, preheat_steps=0.2), dataloader=loader())


class _Streamed(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


def test_streamed_data_need_max_steps_as_they_do_for_fine_tuning(model, tmp_path):
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        hrp.preheat(
            model,
            hrp.HRPConfig(preheat_rank=8),
            trainer_cls=Trainer,
            args=arguments(tmp_path),
            train_dataset=_Streamed(),
        )


@pytest.mark.parametrize(("share", "told"), [(None, "a share, the default"), (0.3, "0.3")])
def test_a_share_is_refused_where_a_trainer_s_own_loader_has_no_length(
    model, tmp_path, share, told
):
    class Streaming(Trainer):
        def get_train_dataloader(self):
            return DataLoader(_Streamed(), collate_fn=collate)

    trainer = Streaming(model=model, args=arguments(tmp_path), train_dataset=ROWS)
    with pytest.raises(
        ValueError, match=rf"not known beforehand, got {told}; give one of them.*of streamed data"
    ):
        hrp.preheat(trainer, hrp.HRPConfig(preheat_rank=8, preheat_steps=share))


def test_rows_that_trl_packs_are_counted_as_its_trainer_packs_them(tmp_path):
    trainer = packed(tmp_path, max_steps=-1, num_train_epochs=5)
    rows = Dataset.from_list([{"text": words(number, 5 + number % 7)} for number in range(40)])
    spectrum = hrp.preheat(
        trainer.model,
        hrp.HRPConfig(preheat_rank=4, preheat_steps=0.5),
        trainer_cls=SFTTrainer,
        args=trainer.args,
        train_dataset=rows,
        processing_class=trainer.processing_class,
    )
    trainer.train()
    assert spectrum.provenance["steps"] == round(0.5 * trainer.state.max_steps)
