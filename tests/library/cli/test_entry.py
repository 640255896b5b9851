"""The entry point: the overview, unknown commands, a reader that stops reading."""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.metadata import version

import pytest

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
