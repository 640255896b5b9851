"""The help of one screen, all flags behind --help-all, and what is said to a slip of the pen."""

from __future__ import annotations

import re

import pytest
import yaml

from helpers.commands import BASE, call, questions, training
from hrp.cli.help_page import GROUPS


def help_of(command, capsys, flag="--help") -> str:
    with pytest.raises(SystemExit) as stopped:
        call(command, flag)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["sft", "preheat", "finetune"])
def test_the_help_fits_a_screen_and_has_groups_and_an_example(command, capsys):
    lines = help_of(command, capsys).splitlines()
    assert len(lines) <= 41
    assert max(map(len, lines)) <= 100
    titles = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert titles == [*(f"{title}:" for title in GROUPS), "example:"]
    assert any(line.startswith(f"  hrp {command} --") for line in lines)


def test_the_help_shows_choices_and_true_defaults(capsys):
    text = " ".join(help_of("sft", capsys).split())
    for part in (
        "rank (default: 16)",
        "--direction {A,B,AB} start lora_A, lora_B or both from it (default: AB)",
        "(default: 128)",
        "(default: 2e-05)",
    ):
        assert part in text
    assert "default: None" not in text
    assert "--task {seq2seq,classification}" in help_of("finetune", capsys)


def test_every_flag_is_behind_help_all(capsys):
    text = help_of("sft", capsys, "--help-all")
    for flag in ("truncation", "statistics_steps", "preheat_warmup_share", "keep", "packing"):
        assert re.search(rf"^  --{flag}\b", text, re.M), flag
    assert "--direction {A,B,AB}" in text
    assert "(default: None)" not in text
    assert len(text.splitlines()) > 500


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lora_rr", "2"], "unknown flag '--lora_rr'; did you mean --lora_r?"),
        (["--preheat-stpes", "2"], "did you mean --preheat_steps?"),
        (["--direction", "C"], "argument --direction: invalid choice: 'C' (choose from"),
        (["--truncation", "svd"], "argument --truncation: invalid choice: 'svd'"),
        (
            ["--num_processes", "2"],
            "`--num_processes` is a flag of the launcher: accelerate launch --num_processes ... "
            "-m hrp sft ...",
        ),
        (["--accelerate_config=fsdp2"], "accelerate launch --config_file ... -m hrp sft ..."),
        (["--xyzzy"], "unknown flag '--xyzzy'; hrp sft --help-all lists the flags"),
        (["stray"], "unexpected argument 'stray'; every value follows a --flag"),
    ],
)
def test_a_wrong_flag_is_told_what_was_meant(tmp_path, capsys, flags, message):
    given = ["--model_name_or_path", BASE, "--output_dir", tmp_path / "out"]
    assert call("sft", *given, *flags) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_rr", "unknown key in the config file 'lora_rr'; did you mean lora_r?"),
        ("num_machines", "`--num_machines` is a flag of the launcher"),
    ],
)
def test_a_wrong_key_of_a_config_file_is_told_what_was_meant(tmp_path, capsys, key, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), key: 3}))
    assert call("sft", "--config", path) == 2
    assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:You have passed exclude_modules")  # PEFT's, before our line
def test_a_module_to_exclude_that_is_not_there_is_told_what_was_meant(tmp_path, capsys):
    flags = training(questions(tmp_path), tmp_path / "out", "--lora_exclude_modules", "q_prj")
    assert call("sft", *flags) == 2
    told = capsys.readouterr().err
    assert "`--lora_exclude_modules` must name modules of the base model, got 'q_prj'" in told
    assert "did you mean q_proj?" in told
