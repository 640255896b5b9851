"""The entry point: the overview, unknown commands, a reader that stops reading."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import pytest

import hrp
from helpers.tiny import loader
from hrp import versions
from hrp.cli import COMMANDS, main


def test_the_overview_lists_the_commands_in_the_order_of_need(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert list(COMMANDS)[:5] == ["demo", "sft", "finetune", "preheat", "init"]


def test_the_version_is_that_of_the_installed_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hrp {version('hrp-lora')}\n"


def test_python_m_hrp_is_hrp():
    command = [sys.executable, "-m", "hrp", "fit"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("hrp: unknown command 'fit'")


def test_an_unknown_command_is_one_line_with_those_there_are(capsys):
    assert main(["fit"]) == 2
    assert capsys.readouterr().err.startswith("hrp: unknown command 'fit'; choose from demo, sft")


@pytest.mark.parametrize(("typed", "meant"), [("stf", "sft"), ("finetun", "finetune")])
def test_a_misspelt_command_is_told_what_was_meant(capsys, typed, meant):
    assert main([typed]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"; did you mean {meant}?")


def test_an_unheard_of_command_gets_no_guess(capsys):
    assert main(["xyzzy"]) == 2
    assert "did you mean" not in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch):
    """Let HRP ask for other versions than it does."""

    def ask(*texts: str) -> None:
        monkeypatch.setattr(versions, "requires", lambda package: [*texts])

    return ask


def test_an_older_package_is_named_in_one_line_before_anything_is_loaded(asked, capsys):
    asked("peft>=99", "torch>=2", "not-installed-anywhere>=1")
    assert main(["sft", "--help"]) == 2
    assert capsys.readouterr().err == (
        f"hrp sft: peft {version('peft')} is installed and peft>=99 is needed; "
        "pip install 'peft>=99'\n"
    )


def test_packages_of_an_extra_count_only_for_the_commands_that_need_it(asked, capsys):
    asked("trl>=99; extra == 'cli'", "peft>=0.1")
    assert main(["preheat", "--help"]) == 2
    assert "trl>=99 is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["init", "--help"])
    assert capsys.readouterr().err == ""


def test_preheating_warns_of_an_older_package(asked, model):
    asked("peft>=99")
    config = hrp.HRPConfig(preheat_rank=8, preheat_steps=2)
    with pytest.warns(UserWarning, match="peft>=99 is needed"):
        hrp.preheat(model, config, dataloader=loader())


def test_a_source_tree_that_is_not_installed_asks_for_nothing(monkeypatch):
    def absent(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(versions, "requires", absent)
    assert versions.too_old("cli") == []


def test_a_command_whose_packages_are_not_installed_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    for name in [name for name in sys.modules if name.startswith("hrp.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["sft", "--help"]) == 2
    assert capsys.readouterr().err == (
        "hrp sft: the package 'trl' is not installed; pip install 'hrp-lora[cli]'\n"
    )


def test_help_and_import_are_quick():
    """Half a second and 0.3 s are promised; a loaded machine gets the best of three tries."""
    for code, limit in (("from hrp.cli import main; main(['--help'])", 0.5), ("import hrp", 0.3)):
        times = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        assert min(times) < limit, code


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_s_help_ends_with_an_example_of_it(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(COMMANDS[name][0]).main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    _, found, example = text.rpartition("example")
    assert found
    assert f"hrp {name} " in example


def test_a_reader_that_stops_reading_is_no_traceback():
    code = "import sys; from hrp.cli import main; sys.stdin.read(); sys.exit(main(['--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    process.stdin.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert errors == ""
