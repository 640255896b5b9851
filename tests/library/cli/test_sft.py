"""`hrp sft` and `hrp preheat` do the whole job, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel
from transformers import TrainingArguments

import hrp
from helpers.commands import QUICK, assert_same_spectrum, call, questions, training
from hrp.cli import arguments
from hrp.cli.running import with_steps
from hrp.cli.sft import parse_sft
from hrp.demo import BASE, load_base
from hrp.preheating.checkpoints import MARKER


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return questions(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """An output of `hrp sft`, not to be written to."""
    output = tmp_path_factory.mktemp("finished") / "adapter"
    assert call("sft", *training(data, output, "--direction", "B")) == 0
    return output


def adapter(folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def assert_same_adapter(one, two) -> None:
    first, second = adapter(one), adapter(two)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_adapter_loads_in_plain_peft_and_changes_the_model(finished):
    base, tokenizer = load_base()
    ids = torch.tensor([tokenizer("Q: what is 1 plus 2?")["input_ids"]])
    before = base(ids).logits
    model = PeftModel.from_pretrained(base, finished)
    assert not torch.equal(model(ids).logits, before)
    assert json.loads((finished / "adapter_config.json").read_text())["init_lora_weights"] is True


def test_the_output_holds_adapter_card_spectrum_and_no_work_in_progress(finished):
    names = {path.name for path in finished.iterdir() if not path.name.startswith("checkpoint-")}
    assert {"adapter_model.safetensors", "README.md", "spectrum", "hrp.json"} <= names
    assert "hrp-preheating" not in names
    assert json.loads((finished / "hrp.json").read_text())["finished"] is True
    spectrum = hrp.Spectrum.load(finished / "spectrum")
    assert spectrum.provenance["steps"] == 5
    assert spectrum.provenance["cost"]["examples"] == 20
    card = (finished / "README.md").read_text()
    assert "Trained with `hrp sft` on" in card
    assert "| temporary parameters | `78080` |" in card
    assert "| preheat_learning_rate | `0.000707` |" in card


def test_preheating_has_the_same_spectrum_alone(finished, data, tmp_path):
    assert call("preheat", *training(data, tmp_path / "spectrum", "--direction", "B")) == 0
    alone = hrp.Spectrum.load(tmp_path / "spectrum")
    assert_same_spectrum(alone, hrp.Spectrum.load(finished / "spectrum"))
    assert [path.name for path in tmp_path.iterdir()] == ["spectrum"]


def test_a_spectrum_given_skips_preheating_and_ends_the_same(finished, data, tmp_path, capsys):
    given = ("--direction", "B", "--spectrum", finished / "spectrum")
    assert call("sft", *training(data, tmp_path / "adapter", *given)) == 0
    assert "Preheating" not in capsys.readouterr().out
    assert_same_adapter(tmp_path / "adapter", finished)


def test_only_the_start_differs_from_trl(finished, data, tmp_path, monkeypatch):
    """With HRP's initialisation left out, the job is `trl sft`."""
    from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

    from hrp.cli import running

    monkeypatch.setattr(running, "initialize_lora_hrp_weights", lambda *args, **settings: None)
    given = ("--spectrum", finished / "spectrum")
    assert call("sft", *training(data, tmp_path / "ours", *given)) == 0
    from datasets import Dataset

    rows = [json.loads(line) for line in data.read_text().splitlines()]
    columns = {
        "prompt": [f"Q: {row['question']}\nA: " for row in rows],
        "completion": [row["answer"] for row in rows],
    }
    trainer = SFTTrainer(
        model=str(BASE),
        args=SFTConfig(
            output_dir=str(tmp_path / "theirs"),
            max_steps=4,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
        peft_config=get_peft_config(
            ModelConfig(use_peft=True, lora_r=4, lora_alpha=8, lora_target_modules=["all-linear"])
        ),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "theirs"))
    assert_same_adapter(tmp_path / "ours", tmp_path / "theirs")


def test_a_second_run_says_so_and_does_nothing(finished, data, capsys):
    stamps = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert call("sft", *training(data, finished, "--direction", "B")) == 0
    assert "is finished: nothing to do; --overwrite runs it again" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == stamps


def test_only_one_of_many_processes_speaks(finished, data, capsys, monkeypatch):
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "is_local_main_process", property(lambda _: False))
    assert call("sft", *training(data, finished, "--direction", "B")) == 0
    text = capsys.readouterr().out
    assert "is finished" not in text
    assert "--use_peft is implied" not in text


def test_overwrite_runs_again(finished, data, tmp_path):
    copied = tmp_path / "adapter"
    shutil.copytree(finished, copied)
    (copied / "adapter_model.safetensors").unlink()
    (copied / "notes.txt").write_text("mine")
    assert call("sft", *training(data, copied, "--direction", "B", "--overwrite")) == 0
    assert_same_adapter(copied, finished)
    assert (copied / "notes.txt").read_text() == "mine"


def interrupted(finished, folder):
    """A copy of the output as it was after two steps of fine-tuning."""
    shutil.copytree(finished, folder)
    for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
        (folder / name).unlink()
    (folder / "checkpoint-4" / MARKER).unlink()
    record = json.loads((folder / "hrp.json").read_text())
    (folder / "hrp.json").write_text(json.dumps(record | {"finished": False}))
    return folder


def test_fine_tuning_resumes_to_the_same_adapter(finished, data, tmp_path, capsys):
    folder = interrupted(finished, tmp_path / "adapter")
    assert call("sft", *training(data, folder, "--direction", "B")) == 2
    assert "holds an interrupted run; pass --resume to go on" in capsys.readouterr().err
    assert call("sft", *training(data, folder, "--direction", "B", "--resume")) == 0
    assert_same_adapter(folder, finished)


def test_a_run_killed_before_its_last_write_is_finished_without_another_step(
    finished, data, tmp_path
):
    folder = interrupted(finished, tmp_path / "adapter")
    (folder / "checkpoint-4" / MARKER).write_text("{}")
    assert call("sft", *training(data, folder, "--direction", "B", "--resume")) == 0
    assert_same_adapter(folder, finished)


def test_resuming_with_other_settings_is_refused(finished, data, tmp_path, capsys):
    folder = interrupted(finished, tmp_path / "adapter")
    changed = ("--direction", "B", "--resume", "--preheat_rank", "16", "--lora_r", "2")
    assert call("sft", *training(data, folder, *changed)) == 2
    message = capsys.readouterr().err
    assert "lora_r (was 4, now 2), preheat_rank (was 8, now 16)" in message


OTHERS = {
    "weight_decay": ("0.5", "was 0.0, now 0.5"),
    "lr_scheduler_type": ("constant", "was 'linear', now 'constant'"),
    "completion_only_loss": ("false", "was None, now False"),
    "max_grad_norm": ("0.01", "was 1.0, now 0.01"),
    "loss_type": ("dft", "was 'nll', now 'dft'"),
    "neftune_noise_alpha": ("5", "was None, now 5.0"),
    "warmup_steps": ("3", "was 0, now 3.0"),
    "adam_beta2": ("0.9", "was 0.999, now 0.9"),
    "chat_template_path": ("elsewhere", "was None, now 'elsewhere'"),
    "model_init_kwargs": ('{"token": "s", "a": 1}', "was None, now {'a': 1}"),
    "attn_implementation": ("eager", "was None, now 'eager'"),
    "lora_task_type": ("SEQ_CLS", "was 'CAUSAL_LM', now 'SEQ_CLS'"),
    "dataset_config": ("main", "was None, now 'main'"),
    "seed": ("7", "was 42, now 7"),
}


def test_resuming_with_any_other_setting_is_refused_with_both_values(
    finished, data, tmp_path, capsys
):
    folder = interrupted(finished, tmp_path / "adapter")
    changed = [text for name, (value, _) in OTHERS.items() for text in (f"--{name}", value)]
    assert call("sft", *training(data, folder, "--direction", "B", "--resume", *changed)) == 2
    message = capsys.readouterr().err
    told = ", ".join(f"{name} ({both})" for name, (_, both) in sorted(OTHERS.items()))
    assert f"had other settings: {told}; give them as they were" in message


def test_a_resumed_run_may_be_longer_and_show_and_save_otherwise(finished, data, tmp_path):
    folder = interrupted(finished, tmp_path / "adapter")
    longer = ("--max_steps", "5", "--save_steps", "5", "--save_total_limit", "3")
    shown = ("--logging_steps", "1", "--logging_first_step", "true", "--run_name", "other")
    loaded = ("--dataloader_pin_memory", "true", "--preheat_save_steps", "3")
    flags = training(data, folder, "--direction", "B", "--resume", *longer, *shown, *loaded)
    assert call("sft", *flags) == 0
    assert (folder / "checkpoint-5").is_dir()


def test_a_record_of_another_version_of_trl_can_be_resumed(finished, data, tmp_path):
    folder = interrupted(finished, tmp_path / "adapter")
    record = json.loads((folder / "hrp.json").read_text())
    del record["settings"]["loss_type"]
    record["settings"]["of_old"] = 1
    (folder / "hrp.json").write_text(json.dumps(record))
    assert call("sft", *training(data, folder, "--direction", "B", "--resume")) == 0


def test_a_config_file_gives_flags_and_the_command_line_overrides(data, tmp_path):
    settings = {
        "model_name_or_path": str(BASE),
        "dataset_path": str(data),
        "prompt_template": "Q: {question}\nA: ",
        "completion_template": "{answer}",
        "lora_target_modules": ["q_proj", "v_proj"],
        "preheat_rank": 32,
        "preheat_steps": "auto",
        "max_preheat_steps": 4,
        "subspace_window": 2,
        "output_dir": str(tmp_path / "spectrum"),
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    quick = [flag for flag in QUICK if flag not in ("--preheat_steps", "5")]
    assert call("preheat", "--config", config, *quick, "--preheat_rank", "16") == 0
    spectrum = hrp.Spectrum.load(tmp_path / "spectrum")
    assert spectrum.provenance["config"]["preheat_rank"] == 16
    assert spectrum.provenance["config"]["preheat_steps"] == "auto"
    assert spectrum.provenance["steps"] <= 4
    assert {name.rpartition(".")[2] for name in spectrum} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(("share", "steps"), [("0.5", 2), (None, 1)])
def test_preheating_takes_a_share_of_fine_tuning_s_steps(data, tmp_path, share, steps):
    flags = training(data, tmp_path / "spectrum")
    place = flags.index("--preheat_steps")
    flags[place : place + 2] = [] if share is None else ["--preheat_steps", share]
    assert call("preheat", *flags) == 0
    assert hrp.Spectrum.load(tmp_path / "spectrum").provenance["steps"] == steps


def test_a_share_counts_the_rows_that_trl_has_packed(data, tmp_path):
    flags = training(data, tmp_path / "spectrum", "--packing", "true", "--max_length", "64")
    for name in ("--preheat_steps", "--max_steps"):
        place = flags.index(name)
        del flags[place : place + 2]
    assert call("preheat", *flags, "--num_train_epochs", "2") == 0
    assert 1 <= hrp.Spectrum.load(tmp_path / "spectrum").provenance["steps"] < 4  # 40 rows: 20


def test_an_interrupted_preheating_keeps_its_length_where_fine_tuning_gets_longer(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), max_steps=30, use_cpu=True)
    model = SimpleNamespace(peft_config={"default": LoraConfig(task_type="CAUSAL_LM")})
    trainer = SimpleNamespace(
        train_dataset=[{}], args=args, model=model, processing_class=None, data_collator=None
    )
    share = hrp.HRPConfig()
    assert with_steps(trainer, share, tmp_path).preheat_steps == 6
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / MARKER).write_text('{"run": {"preheat_steps": 4}}')
    assert with_steps(trainer, share, tmp_path).preheat_steps == 4
    assert with_steps(trainer, share, None).preheat_steps == 6
    assert with_steps(trainer, hrp.HRPConfig(preheat_steps=7), tmp_path).preheat_steps == 7


def test_preheating_losses_are_reported_under_their_own_name(data, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    flags = training(data, tmp_path / "adapter", "--logging_steps", "1")
    flags[flags.index("--report_to") + 1] = "tensorboard"
    assert call("sft", *flags) == 0
    (events,) = (tmp_path / "adapter" / "runs").rglob("events*")
    reader = EventAccumulator(str(events))
    reader.Reload()
    reported = reader.Scalars("train/preheat/loss")
    losses = hrp.Spectrum.load(tmp_path / "adapter" / "spectrum").provenance["losses"]
    assert [point.step for point in reported] == [1, 2, 3, 4, 5]
    assert [point.value for point in reported] == pytest.approx(losses)
    assert [point.step for point in reader.Scalars("train/loss")] == [1, 2, 3, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


@pytest.fixture
def avx2_only(monkeypatch):
    monkeypatch.setattr(arguments, "has_native_bfloat16", lambda: False)


PARSED = ("--model_name_or_path", str(BASE), "--output_dir", "out")
IN_FLOAT32 = "this CPU cannot compute in bfloat16: training in float32"


@pytest.mark.parametrize(
    ("flags", "bf16"),
    [((), False), (("--bf16", "true"), True), (("--bf16", "false"), False)],
)
def test_a_cpu_without_bfloat16_trains_in_float32_unless_told_otherwise(
    avx2_only, capsys, flags, bf16
):
    request = parse_sft("sft", "", "", [*PARSED, "--use_cpu", *flags])
    assert request.training.bf16 is bf16
    assert (IN_FLOAT32 in capsys.readouterr().out) is (not flags)


def test_a_config_file_can_ask_for_bfloat16_there(avx2_only, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("bf16: true\nuse_cpu: true\n")
    flags = [*PARSED, "--config", str(tmp_path / "run.yaml")]
    assert parse_sft("sft", "", "", flags).training.bf16 is True
    assert IN_FLOAT32 not in capsys.readouterr().out


def test_a_cpu_with_bfloat16_trains_in_it_as_trl_does(monkeypatch, capsys):
    monkeypatch.setattr(arguments, "has_native_bfloat16", lambda: True)
    assert parse_sft("sft", "", "", [*PARSED, "--use_cpu"]).training.bf16 is True
    assert IN_FLOAT32 not in capsys.readouterr().out


@pytest.mark.skipif(torch.accelerator.is_available(), reason="trains on the accelerator")
def test_without_an_accelerator_nobody_has_to_say_that_it_is_the_cpu():
    assert parse_sft("sft", "", "", [*PARSED]).training.use_cpu is True


def test_every_setting_of_hrp_has_its_flag():
    flags = ["--truncation", "frobenius", "--statistics_steps", "3", "--keep", "false"]
    flags += ["--preheat_warmup_share", "0.25", "--preheat_steps", "0.1", "--direction", "B"]
    flags += ["--preheat_rank", "64", "--scale", "2", "--train_factors", "A"]
    flags += ["--preheat_learning_rate", "1e-3", "--preheat_seed", "5"]
    flags += ["--max_preheat_steps", "90", "--subspace_tolerance", "0.1", "--subspace_window", "7"]
    request = parse_sft("sft", "", "", [*PARSED, "--use_cpu", "--bf16", "false", *flags])
    config = request.hrp.hrp_config(0)
    assert config == hrp.HRPConfig(
        *(64, 0.1, "B", 2.0, "A", 1e-3, 5, 90, 0.1, 7),
        truncation="frobenius",
        statistics_steps=3,
        keep=False,
        warmup_share=0.25,
    )
    assert not [
        field.name
        for field in dataclasses.fields(config)
        if getattr(config, field.name) == getattr(hrp.HRPConfig(), field.name)
    ]


def test_excluded_modules_get_no_lora_and_no_spectrum(data, tmp_path):
    flags = training(data, tmp_path / "adapter", "--lora_exclude_modules", "q_proj", "v_proj")
    assert call("sft", *flags) == 0
    spectrum = hrp.Spectrum.load(tmp_path / "adapter" / "spectrum")
    kinds = {name.rpartition(".")[2] for name in spectrum}
    assert kinds == {"k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not [name for name in adapter(tmp_path / "adapter") if "q_proj" in name]


def test_a_share_of_the_rows_is_held_out_as_test_data(data, tmp_path, capsys):
    flags = training(data, tmp_path / "adapter", "--test_split_size", "0.25")
    assert call("sft", *flags, "--eval_strategy", "steps", "--eval_steps", "4") == 0
    assert "eval_loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--test_split_size", "1.5"], "`--test_split_size` must be in (0, 1), got 1.5"),
        (
            ["--test_split_size", "0.5", "--dataset_test_split", "train"],
            "the data have a split 'train' already",
        ),
    ],
)
def test_a_share_that_cannot_be_held_out_is_refused(data, tmp_path, capsys, flags, message):
    assert call("sft", *training(data, tmp_path / "adapter", *flags)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "adapter").exists()
