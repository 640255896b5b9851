"""The commands in the docs parse, their Python compiles, and the site has every page it names."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import yaml

from hrp.cli import COMMANDS
from hrp.cli.arguments import (
    DataArguments,
    HRPArguments,
    OutputArguments,
    SpectrumArguments,
)
from hrp.cli.sft import parse_sft
from hrp.demo import BASE

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAINING = ("sft", "preheat")
WITH_PARSER = ("init", "inspect", "report")


def blocks(language: str) -> list:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.S)):
            found.append(pytest.param(block, id=f"{page.stem}-{number}"))
    return found


def commands(block: str) -> list[list[str]]:
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("hrp ")]
    return [line[1:] for line in words if "..." not in line]


@pytest.mark.parametrize("block", blocks("sh"))
def test_a_documented_command_exists_and_parses(block):
    for name, *flags in commands(block.replace("path/to/model", str(BASE))):
        assert name in COMMANDS
        if name in TRAINING:
            known = [flag for flag in flags if flag not in ("--config", "run.yaml")]
            model = () if "--model_name_or_path" in known else ("--model_name_or_path", "x")
            parse_sft(name, "", "", [*known, *model, "--use_cpu", "--bf16", "false"])
        elif name in WITH_PARSER:
            importlib.import_module(f"hrp.cli.{name}")._parser().parse_args(flags)


@pytest.mark.parametrize("block", blocks("python"))
def test_documented_python_compiles(block):
    ast.parse(block)


def test_a_documented_config_file_parses(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/from-trl.md").read_text(), re.S)
    (tmp_path / "run.yaml").write_text(block)
    flags = ["--config", str(tmp_path / "run.yaml"), "--use_cpu", "--bf16", "false"]
    request = parse_sft("sft", "", "", flags)
    assert request.data.prompt_template == "Question: {question}\nAnswer:"
    assert request.hrp.hrp_config(0).preheat_steps == "auto"


def test_every_flag_of_ours_is_documented():
    text = (ROOT / "docs/from-trl.md").read_text(encoding="utf-8")
    for kind in (HRPArguments, SpectrumArguments, DataArguments, OutputArguments):
        for name in kind.__dataclass_fields__:
            assert f"`--{name}" in text, name


def test_the_site_names_every_page():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(entries):
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    assert sorted(pages(site["nav"])) == sorted(p.name for p in (ROOT / "docs").glob("*.md"))
