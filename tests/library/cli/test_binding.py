"""A run is never resumed, or taken for done, with other settings, data or base weights."""

from __future__ import annotations

import json
import random
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import Trainer, TrainingArguments

import hrp
from helpers.commands import BASE, assert_same_spectrum, call, questions, training
from helpers.faults import fault
from helpers.tiny import collate, tiny_llama, token_rows, with_lora
from hrp.preheating.binding import base_digest, data_digest, files_digest, settings_of_training
from hrp.preheating.checkpoints import Checkpoints, checkpoint_folders, last_complete

CONFIG = hrp.HRPConfig(preheat_rank=8, preheat_steps=6, learning_rate=1e-2)


class StoppedError(Exception):
    """Stands for a kill."""


def stopping(calls: int) -> type[Trainer]:
    class Stopping(Trainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step >= calls:
                raise StoppedError
            return super().training_step(*args, **kwargs)

    return Stopping


def preheated(folder, trainer_cls=Trainer, rows=None, model=None, **settings) -> hrp.Spectrum:
    settings = {"per_device_train_batch_size": 8, "use_cpu": True} | settings
    args = TrainingArguments(str(folder / "unused"), disable_tqdm=True, report_to=[], **settings)
    return hrp.preheat(
        model or with_lora(tiny_llama()),
        CONFIG,
        trainer_cls=trainer_cls,
        args=args,
        train_dataset=rows or token_rows(),
        data_collator=collate,
        checkpoints=Checkpoints(folder, every=2),
    )


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A folder of checkpoints of a preheating that ended at step 5; not to be written to."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(StoppedError):
        preheated(folder, stopping(5))
    return folder


@pytest.fixture
def begun(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "begun")
    return tmp_path / "begun"


def other_base() -> PeftModel:
    model = with_lora(tiny_llama())
    with torch.no_grad():
        model.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight[3, 5] += 1e-3
    return model


def other_rows() -> list:
    rows = token_rows()
    rows[-1] = {name: value.clone() for name, value in rows[-1].items()}
    rows[-1]["input_ids"][0] += 1
    return rows


OTHERS = {
    "other rows": ({"rows": other_rows}, "content of the data"),
    "fewer rows": ({"rows": lambda: token_rows()[:-1]}, "content of the data"),
    "other base": ({"model": other_base}, "base weights"),
    "lora_alpha": ({"model": lambda: with_lora(tiny_llama(), lora_alpha=32)}, "lora_alpha"),
    "lora_dropout": ({"model": lambda: with_lora(tiny_llama(), lora_dropout=0.3)}, "lora_dropout"),
    "use_rslora": ({"model": lambda: with_lora(tiny_llama(), use_rslora=True)}, "use_rslora"),
    "weight_decay": ({"weight_decay": lambda: 0.1}, "weight_decay (was 0.0, now 0.1)"),
    "max_grad_norm": ({"max_grad_norm": lambda: 0.5}, "max_grad_norm (was 1.0, now 0.5)"),
    "bf16": ({"bf16": lambda: True}, "bf16 (was False, now True)"),
    "label smoothing": ({"label_smoothing_factor": lambda: 0.1}, "label_smoothing_factor"),
    "optimizer": ({"optim": lambda: "sgd"}, "optim "),
    "adam_beta2": ({"adam_beta2": lambda: 0.9}, "adam_beta2 (was 0.999, now 0.9)"),
}


@fault(
    "Other inputs",
    "resumed with other data, base weights, `lora_alpha`, `weight_decay`, precision ...",
    command="`hrp.preheat`",
    outcome="refused by name before the first step",
)
@pytest.mark.parametrize("other", OTHERS)
def test_the_library_s_checkpoints_refuse_another_run_by_name(begun, other):
    changes, message = OTHERS[other]
    before = {path: path.stat().st_mtime_ns for path in begun.rglob("checkpoint-*/*")}
    with pytest.raises(ValueError, match=re.escape(message)):
        preheated(begun, **{name: make() for name, make in changes.items()})
    assert {path: path.stat().st_mtime_ns for path in begun.rglob("checkpoint-*/*")} == before


def test_the_same_run_goes_on_to_the_same_spectrum(begun, tmp_path):
    shown = {"logging_steps": 7, "dataloader_num_workers": 0, "run_name": "other"}
    assert_same_spectrum(preheated(begun, **shown), preheated(tmp_path / "undisturbed"))


@fault(
    "Whose file is it",
    "your `checkpoint-2/4/6` in the folder of `Checkpoints`",
    command="`hrp.preheat`",
    outcome="kept; preheating works in `hrp-preheating` inside it",
)
@pytest.mark.parametrize("names", [("checkpoint-2", "checkpoint-4", "checkpoint-6"), ("notes",)])
def test_preheating_leaves_a_user_s_folder_alone(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("mine")
    preheated(tmp_path)
    for name in names:
        assert (tmp_path / name / "trainer_state.json").read_text() == "mine"
    checkpoints = Checkpoints(tmp_path)
    assert last_complete(checkpoints.folder).name == "checkpoint-6"
    checkpoints.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


@pytest.mark.parametrize("name", ["checkpoint-9", "notes.txt"])
@pytest.mark.parametrize("marked", [True, False])
def test_a_folder_of_preheating_s_name_that_holds_foreign_things_is_refused(tmp_path, name, marked):
    own = Checkpoints(tmp_path).folder
    if marked:
        preheated(tmp_path)
    (own / name).mkdir(parents=True)
    (own / name / "thesis").write_text("mine")
    with pytest.raises(ValueError, match="must be preheating's own, got"):
        preheated(tmp_path)
    Checkpoints(tmp_path).remove()
    assert [path.name for path in own.iterdir()] == [name]


def test_a_user_s_file_in_a_checkpoint_is_kept(begun):
    checkpoints = Checkpoints(begun)
    (newest,) = checkpoint_folders(checkpoints.folder)[-1:]
    (newest / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"checkpoint-4/thesis\.txt"):
        checkpoints.check()
    checkpoints.remove()
    assert [path.name for path in newest.iterdir()] == ["thesis.txt"]
    assert checkpoint_folders(checkpoints.folder) == [newest]


def test_checkpoints_follow_the_umask(begun):
    files = [path for path in begun.rglob("checkpoint-*/**/*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}


def test_data_are_known_by_their_content():
    rows = [{"text": f"{i}", "n": i, "ids": [i] * (i % 5), "none": None} for i in range(3000)]
    digest = data_digest(Dataset.from_list(rows))
    chunked = Dataset.from_list(rows[:1234] + rows[1234:])
    assert data_digest(chunked.select(range(3000))) == digest
    assert data_digest(chunked.shuffle(seed=0)) != digest
    changed = [*rows[:2000], rows[2000] | {"n": -1}, *rows[2001:]]
    assert data_digest(Dataset.from_list(changed)) != digest
    assert data_digest(rows) != data_digest(changed)
    assert data_digest(rows) == data_digest(tuple(rows))


def test_data_that_differ_at_each_look_are_known_by_their_length():
    class Random:
        def __init__(self, length: int) -> None:
            self.length, self.calls = length, 0

        def __len__(self) -> int:
            return self.length

        def __getitem__(self, index: int) -> dict:
            self.calls += 1
            return {"noise": torch.rand(2), "calls": self.calls}

    state = torch.random.get_rng_state()
    assert data_digest(Random(9)) == data_digest(Random(9)) != data_digest(Random(8))
    assert torch.equal(torch.random.get_rng_state(), state)
    random.seed(0)
    assert data_digest(Dataset.from_list([{"a": 1}]).to_iterable_dataset()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_base_weight_counts_and_no_adapter_s(dtype):
    model = with_lora(tiny_llama().to(dtype))
    digest = base_digest(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(1)
    assert base_digest(model) == digest
    for parameter in model.get_base_model().model.layers[0].parameters():
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 1
        assert parameter.requires_grad or base_digest(model) != digest
        parameter.data = before


def test_sets_are_bound_in_an_order_of_their_own():
    config = SimpleNamespace(to_dict=lambda: {"target_modules": {"v_proj", "q_proj", "k_proj"}})
    model = torch.nn.Linear(2, 2)
    model.peft_config = {"default": config}
    args = TrainingArguments("unused", use_cpu=True)
    bound = settings_of_training(args, model, [])
    assert bound["default.target_modules"] == ["k_proj", "q_proj", "v_proj"]


def test_a_large_file_is_sampled_and_a_folder_is_read_whole(tmp_path):
    with (tmp_path / "weights").open("wb") as file:
        file.truncate(1 << 28)
    first = files_digest(tmp_path, whole=False)
    with (tmp_path / "weights").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert files_digest(tmp_path, whole=False) != first
    (tmp_path / "weights").unlink()
    (tmp_path / "a[1].jsonl").write_text("1")
    first = files_digest(tmp_path)
    (tmp_path / "a[1].jsonl").rename(tmp_path / "b.jsonl")
    assert files_digest(tmp_path) != first


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Data, and outputs of `hrp sft` and `hrp preheat` from them; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    data = questions(folder)
    assert call("sft", *training(data, folder / "sft")) == 0
    assert call("preheat", *training(data, folder / "preheat")) == 0
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copied")
    return tmp_path / "copied"


CHANGED = {
    "learning_rate": ("0.5", "learning_rate (was 0.001, now 0.5)"),
    "lora_r": ("2", "lora_r (was 4, now 2)"),
    "max_steps": ("9", "max_steps (was 4, now 9)"),
    "preheat_rank": ("16", "preheat_rank (was 8, now 16)"),
}


@fault(
    "Other inputs",
    "a finished output, other rate, rank, length or data",
    command="sft, finetune, preheat",
    outcome="refused with both values, status 2",
)
@pytest.mark.parametrize("command", ["sft", "preheat"])
@pytest.mark.parametrize("name", CHANGED)
def test_a_finished_output_of_other_settings_is_refused(finished, capsys, command, name):
    value, told = CHANGED[name]
    flags = training(finished / "rows.jsonl", finished / command, f"--{name}", value)
    assert call(command, *flags) == 2
    assert told in capsys.readouterr().err
    assert call(command, *training(finished / "rows.jsonl", finished / command)) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_a_finished_output_of_other_data_is_refused(copied, capsys, command):
    data = copied / "rows.jsonl"
    flags = training(finished_data := copied / "rows.jsonl", copied / command)
    place = flags.index(str(finished_data))
    record = copied / "sft" / "hrp.json"
    if command == "sft":  # the copy's data have another path, which binds too
        content = json.loads(record.read_text())
        content["settings"]["dataset_path"] = str(data)
        record.write_text(json.dumps(content))
    data.write_text(data.read_text().replace("what is 7", "what is 8"))
    assert call(command, *flags) == 2
    assert "content of the data" in capsys.readouterr().err
    assert flags[place] == str(data)


def as_interrupted(output) -> None:
    """Make of a finished output one that was killed between preheating and its adapter."""
    record = json.loads((output / "hrp.json").read_text())
    for name in record["files"]:
        (output / name).unlink()
    for checkpoint in checkpoint_folders(output):
        shutil.rmtree(checkpoint)
    (output / "hrp.json").write_text(json.dumps(record | {"finished": False, "files": {}}))


@fault(
    "Other inputs",
    "resumed after the data file changed",
    command="sft, finetune, preheat",
    outcome="refused, status 2",
)
def test_a_resumed_run_with_other_content_in_its_data_file_is_refused(copied, capsys):
    output, data = copied / "sft", copied / "data.jsonl"
    shutil.copy(copied / "rows.jsonl", data)
    assert call("sft", *training(data, output, "--overwrite")) == 0
    as_interrupted(output)
    before = data.read_text()
    data.write_text(before.replace("what is 7", "what is 8"))
    assert call("sft", *training(data, output, "--resume")) == 2
    assert "content of the data" in capsys.readouterr().err
    data.write_text(before)
    assert call("sft", *training(data, output, "--resume")) == 0


def test_a_resumed_run_on_other_base_weights_is_refused(tmp_path, capsys):
    base, data, output = tmp_path / "base", questions(tmp_path), tmp_path / "out"
    shutil.copytree(BASE, base)
    flags = [str(base) if flag == str(BASE) else flag for flag in training(data, output)]
    assert call("sft", *flags) == 0
    as_interrupted(output)
    from safetensors.torch import load_file, save_file

    path = base / "model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert call("sft", *flags, "--resume") == 2
    assert "base weights" in capsys.readouterr().err


@fault(
    "Other inputs",
    "an output inside the folder of the data, or of the base",
    command="sft, finetune, preheat",
    outcome="refused before anything is written; a resumed run would read its own output",
)
@pytest.mark.parametrize("command", ["sft", "preheat"])
@pytest.mark.parametrize("flag", ["--dataset_path", "--model_name_or_path"])
@pytest.mark.parametrize("below", ["", "runs/out"])
def test_an_output_inside_what_the_run_reads_is_refused(tmp_path, capsys, command, flag, below):
    given = tmp_path / "given"
    if flag == "--dataset_path":
        given.mkdir()
        questions(given)
    else:
        shutil.copytree(BASE, given)
    before = sorted(given.rglob("*"))
    flags = training(questions(tmp_path), given / below, flag, given)
    assert call(command, *flags) == 2
    refusal = f"`--output_dir` must be outside '{given}', whose files a resumed run compares"
    assert refusal in capsys.readouterr().err
    assert sorted(given.rglob("*")) == before
