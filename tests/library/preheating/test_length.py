"""Preheating's length as a share of the run that it prepares."""

from __future__ import annotations

import itertools

import pytest
from peft import LoraConfig
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

import hrp
from helpers.tiny import collate, loader, token_rows
from hrp.preheating.length import DEFAULT_STEPS, of_trainer, planned_steps

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
    trainer.train()
    assert planned_steps(args, ROWS) == trainer.state.max_steps


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
def test_classifiers_are_preheated_for_less_by_default(tmp_path, task_type, steps):
    args, lora = arguments(tmp_path, max_steps=100), LoraConfig(task_type=task_type)
    assert of_trainer(hrp.HRPConfig(), args, ROWS, lora).preheat_steps == steps
    given = hrp.HRPConfig(preheat_steps=0.3)
    assert of_trainer(given, args, ROWS, lora).preheat_steps == 30


def test_with_a_dataloader_the_default_is_a_number(model):
    spectrum = hrp.preheat(model, hrp.HRPConfig(preheat_rank=8), dataloader=loader(2))
    assert spectrum.provenance["steps"] == DEFAULT_STEPS


def test_a_share_is_refused_with_a_dataloader(model):
    with pytest.raises(
        ValueError, match=r"or 'auto' with `dataloader`.*got 0\.2; give `total_steps`"
    ):
        hrp.preheat(model, hrp.HRPConfig(preheat_rank=8, preheat_steps=0.2), dataloader=loader())


class _Streamed(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize(("share", "told"), [(None, "a share, the default"), (0.3, "0.3")])
def test_a_share_is_refused_where_the_length_of_the_run_is_not_known(model, tmp_path, share, told):
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=share)
    with pytest.raises(
        ValueError, match=rf"streamed data.*got {told}; give one of them, or set `max_"
    ):
        hrp.preheat(
            model, config, trainer_cls=Trainer, args=arguments(tmp_path), train_dataset=_Streamed()
        )


def test_rows_that_trl_will_pack_are_not_counted(tmp_path):
    args = arguments(tmp_path)
    counted = planned_steps(args, ROWS)
    args.packing, args.dataset_kwargs = True, None
    assert planned_steps(args, ROWS) is None
    args.dataset_kwargs = {"skip_prepare_dataset": True}  # packed already
    assert planned_steps(args, ROWS) == counted
