"""Every mistake in the flags or the data gets one line that says what to do, and no output."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import jinja2
import pyarrow
import pytest
import safetensors.torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Seq2SeqTrainingArguments
from trl import ScriptArguments, SFTConfig

from helpers.commands import BASE, LORA, QUICK, call, questions, training
from helpers.faults import fault
from helpers.spectra_made import made_spectrum
from hrp.cli.arguments import DataArguments, LoraModelConfig
from hrp.cli.datasets import check_columns, load_splits, split_of, with_templates
from hrp.cli.failures import UsageError, reported

ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "2+2?", "answer": "4"}]


@pytest.fixture
def data(tmp_path):
    return questions(tmp_path, count=8)


def refused(capsys, command: str, *flags) -> str:
    """The message of a command that must fail as a user error, without a traceback."""
    assert call(command, *flags) == 2
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    lines = [line for line in captured.splitlines() if line.startswith(f"hrp {command}: ")]
    assert len(lines) == 1
    return captured[captured.index(lines[0]) :]


def load(path, **flags):
    return load_splits(ScriptArguments(), DataArguments(dataset_path=str(path), **flags))


def templated(prompt: str, completion: str | None = "{answer}"):
    rows = datasets.Dataset.from_list(ROWS)
    return with_templates(rows, {"prompt": prompt, "completion": completion})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preheat_rnk", "4"], "unknown flag '--preheat_rnk'; did you mean --preheat_rank?"),
        (["--qqqqqq"], "unknown flag '--qqqqqq'; hrp sft --help-all lists the flags"),
        (["stray"], "unexpected argument 'stray'"),
        (["--preheat_rank", "many"], "argument --preheat_rank"),
        (["--preheat_learning_rate", "-1"], "`preheat_learning_rate` must be finite and > 0"),
        (["--preheat_seed", "-1"], "`preheat_seed` must be an integer >= 0, got -1"),
        (["--learning_rate", "-1"], "`learning_rate` must be finite and > 0, got -1.0"),
        (["--lora_r", "0"], "`lora_r` must be an integer >= 1, got 0"),
        (["--lora_alpha", "0"], "`lora_alpha` must be finite and > 0, got 0"),
        (["--lora_dropout", "1.5"], "`lora_dropout` must be in [0, 1), got 1.5"),
        (["--per_device_train_batch_size", "0"], "`per_device_train_batch_size` must be an int"),
        (["--gradient_accumulation_steps", "0"], "`gradient_accumulation_steps` must be an int"),
        (["--max_steps", "0", "--num_train_epochs", "0"], "`num_train_epochs` must be finite and"),
        (["--max_length", "-3"], "`max_length` must be an integer >= 1, got -3"),
        (["--lora_target_modules", "q_prj"], "of the base model, got ['q_prj']; give such as"),
        (["--lora_target_modules", "("], "must be names or a regular expression, got '('"),
        (["--spectrum", "nowhere"], "'nowhere' is no spectrum folder"),
        (["--preheat_steps", "0"], "`preheat_steps` must be an integer >= 1, got 0"),
        (["--preheat_steps", "some"], "got 'some'; or give 'auto'"),
        (["--preheat_steps", "1.5"], "got 1.5; or give 'auto', or a share of fine-tuning's steps"),
        (["--direction", "C"], "argument --direction: invalid choice: 'C'"),
        (["--preheat_save_steps", "0"], "`preheat_save_steps` must be an integer >= 1"),
        (["--resume_from_checkpoint", "x"], "pass --resume"),
        (["--dataset_name", "x"], "exactly one of --dataset_path and --dataset_name is needed"),
        (["--completion_template", "{reply}"], "the columns are ['question', 'answer']"),
        (["--dataset_train_split", "dev"], "`--dataset_train_split` must be one of ['train']"),
        (["--eval_strategy", "steps"], "`--dataset_test_split` must be one of ['train']"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--load_in_4bit", "--load_in_8bit"], "8 bit and 4 bit precision at the same time"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(tmp_path, data, capsys, flags, message):
    output = tmp_path / "adapter"
    assert message in refused(capsys, "sft", *training(data, output, *flags))
    assert not output.exists()


def test_a_single_target_module_is_a_name_and_no_pattern(tmp_path, data):
    from hrp.spectra.spectrum import Spectrum

    flags = training(data, tmp_path / "spectrum", "--lora_target_modules", "q_proj")
    assert call("preheat", *flags) == 0
    assert {name.rpartition(".")[2] for name in Spectrum.load(tmp_path / "spectrum")} == {"q_proj"}


@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_one_unknown_target_among_known_ones_is_refused(command, tmp_path, data, capsys):
    flags = training(data, tmp_path / "out", "--lora_target_modules", "q_proj", "v_prj")
    assert "got 'v_prj'; did you mean v_proj?" in refused(capsys, command, *flags)
    assert not list(tmp_path.glob("out/*"))


def test_a_missing_model_flag_is_named(tmp_path, data, capsys):
    message = refused(capsys, "sft", "--dataset_path", data, "--use_cpu", "--bf16", "false")
    assert "`--model_name_or_path` is needed" in message


def test_an_unknown_key_in_a_config_file_is_refused(tmp_path, data, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("preheat_ranks: 4\n")
    message = refused(capsys, "sft", *training(data, tmp_path / "o", "--config", config))
    assert "unknown key in the config file 'preheat_ranks'; did you mean preheat_rank?" in message


def test_a_config_file_that_is_not_yaml_is_refused(tmp_path, data, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("a: [1\n")
    message = refused(capsys, "sft", *training(data, tmp_path / "o", f"--config={config}"))
    assert "config.yaml" in message


WRONG_TYPES = [
    ("lora_r", "many", "`lora_r` must be an integer, got 'many'"),
    ("lora_r", 4.5, "`lora_r` must be an integer, got 4.5"),
    ("lora_r", True, "`lora_r` must be an integer, got True"),
    ("lora_r", None, "`lora_r` must be an integer, got None"),
    ("learning_rate", [1e-3], "`learning_rate` must be a number, got [0.001]"),
    ("learning_rate", {"a": {"b": 1}}, "`learning_rate` must be a number, got {'a': {'b': 1}}"),
    ("dataset_path", ["rows.jsonl"], "`dataset_path` must be text in quotes or null, got ['rows"),
    ("dataset_path", datetime.date(2026, 1, 1), "`dataset_path` must be text in quotes or null"),
    ("resume", 1, "`resume` must be true or false, got 1"),
    ("resume", "perhaps", "`resume` must be true or false, got 'perhaps'"),
    ("direction", "C", "`direction` must be 'A' or 'B' or 'AB', got 'C'"),
    ("direction", None, "`direction` must be 'A' or 'B' or 'AB', got None"),
    ("lora_target_modules", 3, "`lora_target_modules` must be a list of text in quotes or null"),
    ("lora_target_modules", [3], "`lora_target_modules` must be a list of text in quotes or null"),
    ("lr_scheduler_kwargs", 3.5, "`lr_scheduler_kwargs` must be a mapping or text in quotes or"),
    ("bf16", [True], "`bf16` must be true or false"),
]


@fault(
    "Other inputs",
    "a value of another type in a config file",
    command="sft, finetune, preheat, hrp-lab bench",
    outcome="one line with key, types and value, status 2",
)
@pytest.mark.parametrize("command", ["sft", "preheat", "finetune"])
@pytest.mark.parametrize(("key", "value", "message"), WRONG_TYPES)
def test_a_value_of_another_type_in_a_config_file_is_refused(
    tmp_path, capsys, command, key, value, message
):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({key: value}))
    told = refused(capsys, command, "--config", config, "--output_dir", tmp_path / "out")
    assert message in told
    assert "; mend the file, or leave the key out" in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1: 2", "must have names of flags as keys, got 1"),
        ("null: 2", "must have names of flags as keys, got None"),
        ("env: 3", "`env` field should be a dict"),
        ("- lora_r", "must hold a mapping, got list"),
        ("", "must hold a mapping, got NoneType"),
    ],
)
def test_a_config_file_of_another_shape_is_refused(tmp_path, data, capsys, text, message):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert message in refused(capsys, "sft", *training(data, tmp_path / "o", "--config", config))


def test_what_spells_a_value_in_a_config_file_is_one(tmp_path):
    from hrp.cli.sft import parse_sft

    config = tmp_path / "config.yaml"
    config.write_text(
        f"model_name_or_path: {BASE}\nlearning_rate: 1e-4\nlora_r: '8'\nresume: 'yes'\n"
        "bf16: false\n"
        "run_name: 7\npreheat_steps: 0.25\nlora_target_modules: q_proj\nuse_cpu: true\n"
        "lora_dropout: 0\nreport_to: none\n"
    )
    request = parse_sft("sft", "", "", ["--config", str(config)])
    assert request.training.learning_rate == 1e-4
    assert request.model.lora_r == 8
    assert request.output.resume is True
    assert request.training.run_name == "7"
    assert request.hrp.hrp_config(0).preheat_steps == 0.25
    assert request.model.lora_target_modules == ["q_proj"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["sft", "finetune"])
def test_no_value_of_any_key_of_a_config_file_gives_a_traceback(tmp_path, capsys, command):
    config = tmp_path / "config.yaml"
    base = ["--model_name_or_path", BASE, "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    base += ["--task", "classification"] if command == "finetune" else []
    keys = sorted(
        {
            field.name
            for group in (SFTConfig, Seq2SeqTrainingArguments, LoraModelConfig, ScriptArguments)
            for field in dataclasses.fields(group)
        }
        - {"model_name_or_path", "output_dir", "use_cpu"}
    )
    for key in keys:
        for value in (None, True, 3, -1.5, "odd", [1, "a"], {"a": {"b": None}}):
            config.write_text(yaml.safe_dump({key: value}))
            status = call(command, "--config", config, *base)
            assert status == 2, (key, value)  # no data are given
    assert "Traceback" not in capsys.readouterr().err


def test_columns_that_trl_does_not_know_are_listed(tmp_path, data, capsys):
    flags = ["--model_name_or_path", BASE, "--dataset_path", data, *LORA, *QUICK]
    message = refused(capsys, "sft", *flags, "--output_dir", tmp_path / "adapter")
    assert "must have the columns messages or conversations or prompt+completion" in message
    assert "got ['question', 'answer']; for others, pass --prompt_template" in message


def test_a_preheat_rank_below_the_adapters_is_refused_and_can_be_run_again(tmp_path, data, capsys):
    output = tmp_path / "adapter"
    message = refused(capsys, "sft", *training(data, output, "--preheat_rank", "2"))
    assert "`preheat_rank` must be at least the adapter's rank 4, got 2" in message
    assert call("sft", *training(data, output)) == 0


def test_the_spectrum_of_another_model_is_refused(tmp_path, data, capsys):
    import torch

    from hrp.spectra.module_spectrum import ModuleSpectrum
    from hrp.spectra.spectrum import Spectrum

    foreign = ModuleSpectrum(torch.eye(8, 4), torch.ones(4), torch.eye(4, 8), 1.0)
    Spectrum({"transformer.h.0.attn": foreign}).save(tmp_path / "foreign")
    flags = training(data, tmp_path / "adapter", "--spectrum", tmp_path / "foreign")
    assert "`spectrum` lacks 28 of the adapter's 28 modules" in refused(capsys, "sft", *flags)
    assert not (tmp_path / "adapter" / "adapter_config.json").exists()


@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_an_output_under_a_file_is_refused_before_the_model_is_loaded(
    command, tmp_path, data, capsys
):
    (tmp_path / "file").write_text("")
    flags = training(data, tmp_path / "file" / "adapter", "--lora_target_modules", "none", "such")
    message = refused(capsys, command, *flags)
    assert f"`--output_dir` '{tmp_path / 'file' / 'adapter'}' cannot be written" in message
    assert f"'{tmp_path / 'file'}' is no folder; choose another" in message


@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_an_output_that_may_not_be_written_is_refused(command, tmp_path, data, capsys, monkeypatch):
    from hrp.cli import outputs

    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", dir)

    monkeypatch.setattr(outputs.tempfile, "TemporaryFile", refuse)
    message = refused(capsys, command, *training(data, tmp_path / "adapter"))
    wanted = f"cannot be written: '{tmp_path}' takes no file (Permission denied); choose another"
    assert wanted in message


@pytest.mark.parametrize("command", ["sft", "preheat"])
def test_a_model_folder_that_is_not_there_is_named(command, tmp_path, data, capsys):
    flags = training(data, tmp_path / "adapter", "--model_name_or_path", tmp_path / "none")
    message = refused(capsys, command, *flags)
    assert f"`--model_name_or_path` '{tmp_path / 'none'}' is no folder" in message


def test_a_message_that_a_library_folds_is_one_line(capsys):
    def job():
        raise OSError("We could not connect.\n  Check\nyour network.")

    assert reported("sft", job) == 2
    assert capsys.readouterr().err == "hrp sft: We could not connect. Check your network.\n"


def raised(error: BaseException):
    def job():
        raise error

    return job


class ConnectError(Exception):
    """As httpx has it: no OSError."""

    __module__ = "httpx"


@fault("Hostile or damaged input", "a fault of HRP's own", command="all", outcome="its traceback")
@pytest.mark.parametrize(
    "job",
    [
        raised(RuntimeError("a shape is wrong")),
        raised(KeyError("x")),
        raised(AssertionError()),
        lambda: len(None),
        lambda: int("many"),
        lambda: None + 1,
        lambda: dict([1]),
        lambda: [][1],
        lambda: pyarrow.schema(len(3)),
    ],
)
def test_a_fault_of_ours_keeps_its_traceback(job):
    with pytest.raises((RuntimeError, LookupError, AssertionError, TypeError, ValueError)):
        reported("sft", job)


@fault(
    "Hostile or damaged input",
    "a missing package, no network, no bf16, a limit on files",
    command="all",
    outcome="one line with a remedy, status 2",
)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TypeError("`args` must be ..."), "`args` must be ..."),
        (ValueError("Your setup doesn't support bf16/gpu."), "; pass --bf16 false"),
        (
            RuntimeError("WandbCallback requires wandb to be installed."),
            "; or pass --report_to none",
        ),
        (ConnectError("no route"), "no route; is the network there? HF_HUB_OFFLINE=1"),
        (OSError(errno.EFBIG, "File too large"), "raise the limit on the size of files (`ulimit"),
        (OSError(errno.EDQUOT, "Quota"), "make room on the disk and run the command again"),
        (ImportError("bitsandbytes is needed"), "bitsandbytes is needed"),
    ],
)
def test_a_failure_of_the_user_s_world_is_one_line_with_a_remedy(capsys, error, message):
    assert reported("sft", raised(error)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("hrp sft: ")
    assert told.count("\n") == 1


def broken_tokenizer():
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text('{"model": 1}')
        return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize(
    ("job", "package"),
    [
        (broken_tokenizer, "tokenizers"),
        (lambda: AutoTokenizer.from_pretrained(BASE).decode(["a"]), "tokenizers"),
        (lambda: pyarrow.array([1, "a"]), "pyarrow"),
        (lambda: pyarrow.ipc.open_stream(b"1234"), "pyarrow"),
        (lambda: safetensors.torch.load(b"12"), "safetensors"),
        (lambda: jinja2.Template("{% for %}"), "jinja2"),
    ],
)
def test_what_compiled_readers_refuse_is_one_line_with_a_remedy(capsys, job, package):
    assert reported("sft", job) == 2
    told = capsys.readouterr().err
    assert f"; {package} cannot read a file, or a row, that it was given; mend or replace" in told
    assert told.count("\n") == 1


BROKEN_MODELS = {
    "config.json": "[]",
    "tokenizer_config.json": "[1]",
    "tokenizer.json": "{",
    "model.safetensors": "12",
}


@fault(
    "Hostile or damaged input",
    "a base model with a broken file",
    command="sft, finetune, preheat",
    outcome="one line, status 2",
)
@pytest.mark.parametrize("name", BROKEN_MODELS)
def test_a_base_with_a_broken_file_is_refused_in_one_line(tmp_path, data, capsys, name):
    model = tmp_path / "model"
    shutil.copytree(BASE, model)
    (model / name).write_text(BROKEN_MODELS[name])
    flags = training(data, tmp_path / "out", "--model_name_or_path", model)
    message = refused(capsys, "sft", *flags)
    assert "get the model's files again" in message or "mend or replace it" in message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2, 10**6]}, "the data hold a token that the model does not have"),
        ({"input_ids": ["a", "b"]}, "column 'input_ids' must hold lists of token numbers, got"),
    ],
)
def test_token_numbers_that_the_model_lacks_are_refused(tmp_path, capsys, row, message):
    path = tmp_path / "ids.jsonl"
    path.write_text(8 * (json.dumps(row) + "\n"))
    flags = ["--model_name_or_path", BASE, "--dataset_path", path, *LORA, *QUICK]
    assert message in refused(capsys, "sft", *flags, "--output_dir", tmp_path / "out")


@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_saved_data_set_with_a_broken_file_is_refused(tmp_path, name):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    (tmp_path / "rows" / name).write_text("[]")
    with pytest.raises(UsageError, match="is no whole data set of `save_to_disk`"):
        load(tmp_path / "rows")


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, data, capsys):
    flags = training(data, tmp_path / "out", "--report_to", "comet_ml")
    assert "install" in refused(capsys, "sft", *flags)


def test_another_programs_output_is_left_alone(tmp_path, data, capsys):
    output = tmp_path / "adapter"
    output.mkdir()
    (output / "adapter_config.json").write_text("{}")
    assert "holds the work of another program" in refused(capsys, "sft", *training(data, output))
    assert (output / "adapter_config.json").read_text() == "{}"


def test_preheat_never_replaces_a_folder_that_is_no_spectrum(tmp_path, data, capsys):
    (tmp_path / "home").mkdir()
    flags = training(data, tmp_path / "home", "--overwrite")
    assert "exists and is no spectrum" in refused(capsys, "preheat", *flags)


def test_preheat_replaces_a_spectrum_only_where_nothing_else_is(tmp_path, data, capsys):
    from hrp.spectra.artefact import FILES

    (tmp_path / "spectrum").mkdir()
    for name in (*FILES, "thesis.txt"):
        (tmp_path / "spectrum" / name).write_text("{}")
    message = refused(capsys, "preheat", *training(data, tmp_path / "spectrum", "--overwrite"))
    assert "exists and is no spectrum" in message
    header = {"format": "hrp-spectrum", "format_version": 2, "modules": {"layer": {}}}
    header |= {"provenance": {"steps": 1}}
    (tmp_path / "spectrum" / "spectrum.json").write_text(json.dumps(header))
    message = refused(capsys, "preheat", *training(data, tmp_path / "spectrum", "--overwrite"))
    assert "holds 'thesis.txt' besides what is replaced" in message
    assert len(list((tmp_path / "spectrum").iterdir())) == len(FILES) + 1
    assert not list(tmp_path.glob(".*"))  # refused before any work was begun


def test_a_full_disk_while_saving_the_spectrum_is_said_and_leaves_no_half(
    tmp_path, data, capsys, monkeypatch
):
    from hrp.spectra import artefact

    def full(*_args, **_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    output = tmp_path / "adapter"
    assert "No space left on device" in refused(capsys, "sft", *training(data, output))
    assert not (output / "spectrum").exists()
    monkeypatch.undo()
    assert call("sft", *training(data, output, "--resume")) == 0


def test_a_full_disk_while_saving_the_adapter_leaves_none(tmp_path, data, capsys, monkeypatch):
    from hrp.cli import running

    def full(**_facts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(running, "card", full)
    output = tmp_path / "adapter"
    assert "No space left on device" in refused(capsys, "sft", *training(data, output))
    assert not (output / "adapter_config.json").exists()
    assert json.loads((output / "hrp.json").read_text())["finished"] is False


def test_a_batch_that_the_data_cannot_fill_is_refused(tmp_path, data, capsys):
    drop = ("--dataloader_drop_last", "true", "--per_device_train_batch_size", "16")
    message = refused(capsys, "sft", *training(data, tmp_path / "adapter", *drop))
    assert "the data give 8 training rows, and one step needs 16" in message


def test_prompts_that_leave_no_room_for_an_answer_are_refused(tmp_path, data, capsys):
    message = refused(capsys, "sft", *training(data, tmp_path / "adapter", "--max_length", "2"))
    assert "the data give 0 training rows, and one step needs 1; give more data" in message


def test_data_seen_more_than_once_in_preheating_are_said(caplog):
    from hrp.cli.trainers import warn_of_repeats
    from hrp.config import HRPConfig

    args = SimpleNamespace(
        train_batch_size=4, gradient_accumulation_steps=2, world_size=1, dataloader_drop_last=False
    )
    with caplog.at_level("WARNING"):
        trainer = SimpleNamespace(train_dataset=ROWS, args=args)
        warn_of_repeats(trainer, HRPConfig())
        assert not caplog.text  # a share of fine-tuning sees them less often than that
        warn_of_repeats(trainer, HRPConfig(preheat_steps=5))
    assert "preheating draws 40 examples from 2 rows, each about 20.0 times" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "is an empty file"),
        ("a.jsonl", '{"a": 1}\n{"a": }\n', "line 2 is not JSON"),
        ("a.jsonl", '{"a": 1}\n\n[1]\n', "line 3 must be a JSON object, got list"),
        (
            "a.json",
            '{"a": 1}\n{"a": 2\n',
            "line 2 is not JSON (Expecting ',' delimiter at column 8)",
        ),
        ("a.jsonl", "\n\n", "there must be at least one row, got none"),
        ("a.json", "[]", "there must be at least one row, got none"),
        ("a.csv", "question,answer\n", "there must be at least one row, got none"),
        ("a.txt", "x", "must be a folder or end in .json, .jsonl, .csv, .parquet"),
        ("a.parquet", "not parquet", "a.parquet"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UsageError) as refusal:
        load(path)
    assert message in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "none.jsonl")


def test_no_data_at_all_is_refused():
    with pytest.raises(UsageError, match=r"exactly one of .*, got neither"):
        load_splits(ScriptArguments(), DataArguments())


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "folder", "disk"])
def test_every_local_form_gives_the_same_rows(tmp_path, suffix):
    rows = datasets.Dataset.from_list(ROWS)
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        rows.to_json(path)
    elif suffix == "json":
        path.write_text(json.dumps(ROWS, indent=1))
    elif suffix == "csv":
        path.write_text("question,answer\n1+1?,2\n2+2?,4\n")
    elif suffix == "parquet":
        rows.to_parquet(path)
    elif suffix == "disk":
        rows.save_to_disk(path)
    else:
        path.mkdir()
        rows.to_json(path / "train.jsonl")
    found = split_of(load(path), "train", "dataset_train_split")
    assert [{name: str(value) for name, value in row.items()} for row in found] == ROWS


def test_a_local_file_may_also_be_given_as_dataset_name(data):
    splits = load_splits(ScriptArguments(dataset_name=str(data)), DataArguments())
    assert len(splits["train"]) == 8


def test_templates_make_prompt_and_completion():
    made = templated(r"Q: {question}\n{{A}}\\n:\t")
    assert made.column_names == ["prompt", "completion"]
    assert made[0] == {"prompt": "Q: 1+1?\n{A}\\n:\t", "completion": "2"}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{reply}", "`--prompt_template` has the field 'reply', but the columns are"),
        ("{question.upper}", "has the field 'question.upper'"),
        ("{0}", "has the field '0'"),
        ("{question!r}", "has the field 'question'"),
        ("{question", "write a brace as {{ or }}"),
    ],
)
def test_a_bad_template_is_refused(prompt, message):
    with pytest.raises(UsageError) as refusal:
        templated(prompt)
    assert message in str(refusal.value)


def test_one_template_without_the_other_is_refused():
    with pytest.raises(UsageError, match="templates go together: --completion_template is missing"):
        templated("{question}", None)


def test_a_row_without_a_value_is_named():
    rows = datasets.Dataset.from_list([*ROWS, {"question": None, "answer": "6"}])
    with pytest.raises(UsageError, match="row 3 of the data has no value in column 'question'"):
        with_templates(rows, {"prompt": "{question}", "completion": "{answer}"})


def test_an_empty_split_is_refused():
    empty = {"train": datasets.Dataset.from_list(ROWS).select([])}
    with pytest.raises(UsageError, match="must hold at least one row, got an empty one"):
        split_of(empty, "train", "dataset_train_split")


def test_columns_of_a_streamed_data_set_are_checked_too():
    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    check_columns(streamed, [{"question"}], "")
    with pytest.raises(UsageError, match="must have the columns text, got"):
        check_columns(streamed, [{"text"}], "")


def text_file(path, **row):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row) + "\n")
    return path


@fault(
    "Other inputs",
    "`--dataset_path 'train[1].jsonl'`",
    command="sft, finetune, preheat",
    outcome="that file is read, not `train1.jsonl`",
)
@pytest.mark.parametrize(
    "name", ["train[1].jsonl", "t*.jsonl", "t?.jsonl", "{a,b}.jsonl", "[!x].jsonl", "[[].jsonl"]
)
def test_a_path_is_no_pattern(tmp_path, name):
    for other in ("train1", "tt", "t1", "a", "b", "y", "["):
        text_file(tmp_path / f"{other}.jsonl", text="another's")
    path = text_file(tmp_path / name, text="mine")
    for given in (DataArguments(dataset_path=str(path)), DataArguments()):
        script = ScriptArguments(dataset_name=None if given.dataset_path else str(path))
        assert load_splits(script, given)["train"][:] == {"text": ["mine"]}


@pytest.mark.parametrize("name", ["data[1]", "dat*", "dat?1", "a::b"])
@pytest.mark.parametrize("flag", ["dataset_path", "dataset_name"])
def test_a_folder_that_would_be_taken_for_a_pattern_is_refused(tmp_path, name, flag):
    text_file(tmp_path / "data1" / "train.jsonl", text="another's")
    text_file(tmp_path / name / "train.jsonl", text="mine")
    given = {"dataset_path": None, "dataset_name": None} | {flag: str(tmp_path / name)}
    script = ScriptArguments(dataset_name=given["dataset_name"])
    with pytest.raises(UsageError, match="takes for a pattern; rename it"):
        load_splits(script, DataArguments(dataset_path=given["dataset_path"]))


@pytest.mark.parametrize("name", ["rows.JSONL", "rows.Json", "rows.CSV"])
def test_endings_in_capitals_are_known(tmp_path, name):
    path = text_file(tmp_path / name, text="mine")
    if name.endswith("CSV"):
        path.write_text("text\nmine\n")
    assert load(path)["train"][:] == {"text": ["mine"]}
    path.write_text('{"a"')
    if not name.endswith("CSV"):
        with pytest.raises(UsageError, match="line 1 is not JSON"):
            load(path)


def test_a_tilde_in_a_config_file_is_the_home_folder(tmp_path, monkeypatch):
    from hrp.cli.sft import parse_sft

    monkeypatch.setenv("HOME", str(tmp_path))
    settings = {
        "dataset_path": "~/rows.jsonl",
        "spectrum": "~/spectrum",
        "output_dir": "~/out",
        "model_name_or_path": "~/model",
        "use_cpu": True,
        "bf16": False,
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    request = parse_sft("sft", "", "", ["--config", str(tmp_path / "c.yaml")])
    assert request.data.dataset_path == str(tmp_path / "rows.jsonl")
    assert request.hrp.spectrum == str(tmp_path / "spectrum")
    assert request.training.output_dir == str(tmp_path / "out")
    assert request.model.model_name_or_path == str(tmp_path / "model")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows"])
def test_a_pipe_as_data_is_refused_without_waiting(tmp_path, capsys, name):
    os.mkfifo(tmp_path / name)
    message = refused(capsys, "sft", *training(tmp_path / name, tmp_path / "out"))
    assert f"'{tmp_path / name}' is neither a file nor a folder" in message


@fault(
    "Other inputs",
    "a pipe as data, record or config",
    command="sft, finetune, preheat",
    outcome="refused at once",
)
@pytest.mark.parametrize("name", ["hrp.json", "config.yaml"])
def test_a_pipe_in_place_of_a_record_or_config_is_refused_without_waiting(
    tmp_path, data, capsys, name
):
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / name)
    config = ("--config", tmp_path / "out" / name) if name == "config.yaml" else ()
    message = refused(capsys, "sft", *training(data, tmp_path / "out", *config))
    assert str(tmp_path / "out" / name) in message


def bomb(merge: bool) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"] if not merge else ["a0: &a0 {x: 1}"]
    for level in range(1, 12):
        parts = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{parts}]}}" if merge else f"[{parts}]"))
    return "\n".join(lines)


@fault(
    "Other inputs",
    "a config file whose YAML aliases grow without bound",
    command="sft, finetune, preheat",
    outcome="refused in under 2 s",
)
@pytest.mark.parametrize("text", [bomb(False), bomb(True), "[" * 5000, "a: &a [*a]"])
def test_a_config_that_grows_without_bound_is_refused_at_once(tmp_path, data, capsys, text):
    config = tmp_path / "config.yaml"
    config.write_text(text)
    began = time.monotonic()
    message = refused(capsys, "sft", *training(data, tmp_path / "out", "--config", config))
    assert "must have at most 10000 values" in message
    assert time.monotonic() - began < 2


@fault(
    "Other inputs",
    "a cell that is empty or a number",
    command="sft, finetune, preheat",
    outcome="refused with the row's number",
)
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "c"}], "row 2 of"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a"}], "no value in column 'completion'"),
        ([{"prompt": "a", "completion": 3}], "column 'completion' must hold text, got int64"),
        ([{"text": 1.5}], "column 'text' must hold text, got float64"),
        ([{"text": "a"}] * 1500 + [{"text": None}], "row 1501 of the data has no value in"),
        ([{"messages": None}], "row 1 of the data has no value in column 'messages'"),
    ],
)
def test_cells_that_are_no_text_are_named_with_their_row(tmp_path, capsys, rows, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model_name_or_path", BASE, "--dataset_path", path, *LORA, *QUICK]
    assert message in refused(capsys, "sft", *flags, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


NESTED = {"q": {"text": "1+1?", "by": {"name": "me"}}, "tags": ["a"], "a.b": "dotted", "n": None}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_template_names_a_part_of_an_object(tmp_path, streaming):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(NESTED) + "\n")
    script = ScriptArguments(dataset_streaming=streaming)
    rows = load_splits(script, DataArguments(dataset_path=str(path)))["train"]
    assert isinstance(rows, datasets.IterableDataset) == streaming
    made = with_templates(rows, {"prompt": "{q.text} {q.by.name}", "completion": "{a.b}"})
    assert next(iter(made)) == {"prompt": "1+1? me", "completion": "dotted"}


@fault(
    "Hostile or damaged input",
    "an object or a list in a template's column",
    command="sft, finetune, preheat",
    outcome="refused with the row's number",
)
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{q}", "row 1 of the data holds an object with ['by', 'text'] in column 'q', where a"),
        ("{q.by}", "row 1 of the data holds an object with ['name'] in column 'q.by'"),
        ("{tags}", "row 1 of the data holds a list in column 'tags'"),
        ("{q.absent}", "row 1 of the data has no value in column 'q.absent'"),
        ("{q.text.more}", "row 1 of the data has no value in column 'q.text.more'"),
        ("{n}", "row 1 of the data has no value in column 'n'"),
        ("{absent.part}", "`--prompt_template` has the field 'absent.part', but the columns are"),
    ],
)
def test_objects_and_lists_never_become_text_by_themselves(template, message):
    rows = datasets.Dataset.from_list([NESTED])
    with pytest.raises(UsageError) as refusal:
        with_templates(rows, {"prompt": template, "completion": "{a.b}"})
    assert message in str(refusal.value)


@pytest.mark.parametrize("kind", ["file", "folder", "saved"])
def test_local_data_are_streamed_where_asked_for(tmp_path, kind):
    path = questions(tmp_path, count=8)
    if kind == "folder":
        path = tmp_path
    elif kind == "saved":
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        path = tmp_path / "saved"
    script = ScriptArguments(dataset_streaming=True)
    splits = load_splits(script, DataArguments(dataset_path=str(path)))
    assert isinstance(splits["train"], datasets.IterableDataset)
    assert "question" in next(iter(splits["train"]))


@pytest.mark.parametrize("marker", ["[]", "7", "null", '"x"', "{", ""])
def test_a_marker_of_a_checkpoint_that_is_none_is_refused_in_one_line(
    tmp_path, data, capsys, marker
):
    output = tmp_path / "out"
    checkpoint = output / "hrp-preheating" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (output / "hrp-preheating" / "hrp-checkpoint.json").write_text("{}")
    for name in ("hrp-checkpoint.json", "hrp-complete.json"):
        (checkpoint / name).write_text(marker)
    for flag in ("--resume", "--overwrite"):
        message = refused(capsys, "sft", *training(data, output, flag))
        assert "is not what HRP wrote; move" in message


@fault(
    "Hostile or damaged input",
    "odd types in a spectrum's provenance",
    command="sft, init, inspect, report",
    outcome="one line, status 2",
)
@pytest.mark.parametrize(
    "provenance",
    [
        {"config": [1]},
        {"losses": "high"},
        {"losses": [1.0, "x"]},
        {"losses": {"0": 1.0}},
        {"stopping": True},
        {"learning_rate": "fast"},
        {"base_model": ["a"]},
        {"unreached": 7},
        {"cost": "dear"},
    ],
)
def test_a_spectrum_of_odd_provenance_is_refused_in_one_line_by_every_command(
    tmp_path, data, capsys, provenance
):
    spectrum = tmp_path / "spectrum"
    made_spectrum().save(spectrum)
    header = json.loads((spectrum / "spectrum.json").read_text())
    header["provenance"] |= provenance
    (spectrum / "spectrum.json").write_text(json.dumps(header))
    (name,) = provenance
    for command, flags in {
        "sft": training(data, tmp_path / "out", "--spectrum", spectrum),
        "init": ["--spectrum", spectrum, "--output_dir", tmp_path / "start"],
        "inspect": [spectrum],
        "report": [spectrum, "--out", tmp_path / "page.html"],
    }.items():
        assert f"`{name}` of the provenance must" in refused(capsys, command, *flags)
    with pytest.raises(ValueError, match=f"read again: `{name}` of the provenance must"):
        made_spectrum(**provenance).save(tmp_path / "again")


@fault(
    "Kills and interrupts",
    "Ctrl-C while a command starts",
    command="all",
    outcome="one line, status 130",
)
def test_ctrl_c_while_a_command_starts_is_quiet(capsys, monkeypatch):
    from hrp import cli

    monkeypatch.setattr(cli.importlib, "import_module", raised_by_any(KeyboardInterrupt()))
    assert cli.main(["sft"]) == 130
    assert capsys.readouterr().err == "\nhrp: interrupted\n"


def raised_by_any(error: BaseException):
    def job(*_):
        raise error

    return job
