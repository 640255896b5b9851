"""The commands in the docs parse, their Python compiles, and the site names every page."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
from mkdocs.utils.yaml import yaml_load

import hrp
from hrp.cli import COMMANDS
from hrp.cli.arguments import (
    DataArguments,
    HRPArguments,
    OutputArguments,
)
from hrp.cli.sft import parse_sft
from hrp.demo import BASE
from hrp_lab.cli import COMMANDS as LAB_COMMANDS

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "lab" / "README.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROGRAMS = {"hrp": COMMANDS, "hrp-lab": LAB_COMMANDS}
TRAINING = ("sft", "preheat")
WITH_PARSER = ("demo", "init", "inspect", "report", "bench", "theory")


def blocks(language: str) -> list:
    """Collect the pages' code blocks of a language, for `parametrize`."""
    collected = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page_id = page.relative_to(ROOT).with_suffix("").as_posix()
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", text, re.S)):
            collected.append(pytest.param(block, id=f"{page_id}-{number}"))
    return collected


def commands(block: str) -> list[list[str]]:
    """Split the lines that run one of our programs into words, continued lines joined."""
    lines = block.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if line and line[0] in PROGRAMS and "..." not in line]


@pytest.mark.parametrize("block", blocks("sh"))
def test_a_documented_command_exists_and_parses(block):
    for program, name, *flags in commands(block.replace("path/to/model", str(BASE))):
        assert name in PROGRAMS[program]
        if name in TRAINING:
            known = [flag for flag in flags if flag not in ("--config", "run.yaml")]
            model = () if "--model_name_or_path" in known else ("--model_name_or_path", "x")
            parse_sft(name, "", "", [*known, *model, "--use_cpu", "--bf16", "false"])
        elif name in WITH_PARSER:
            module, _ = PROGRAMS[program][name]
            importlib.import_module(module)._parser().parse_args(flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_command_named_in_the_text_is_one_of_that_program(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    text = text.replace("hrp: `hrp bench` is", "")  # what the FAQ quotes
    for program, name in re.findall(r"`(hrp|hrp-lab) ([a-z]\w*)", text):
        assert name in PROGRAMS[program], f"{program} {name}"


@pytest.mark.parametrize("block", blocks("python"))
def test_documented_python_compiles_and_what_it_imports_of_ours_is_there(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hrp"):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_a_documented_config_file_parses(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/from-trl.md").read_text(), re.S)
    (tmp_path / "run.yaml").write_text(block)
    flags = ["--config", str(tmp_path / "run.yaml"), "--use_cpu", "--bf16", "false"]
    request = parse_sft("sft", "", "", flags)
    assert request.data.prompt_template == "Question: {question}\nAnswer:"
    assert request.hrp.hrp_config(0).preheat_steps == "auto"


def test_every_flag_of_ours_is_documented():
    text = (ROOT / "docs/from-trl.md").read_text(encoding="utf-8")
    for kind in (HRPArguments, DataArguments, OutputArguments):
        for name in kind.__dataclass_fields__:
            assert f"`--{name}" in text, name


def test_every_formula_is_one_that_the_site_and_github_can_set():
    hooks = runpy.run_path(str(ROOT / "docs/site_hooks.py"))
    for page in (ROOT / "docs").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"```math\n(.*?)```", text, re.DOTALL)
        inline = re.findall(
            r"\$([^$]+)\$", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
        )
        # Markdown on GitHub takes a backslash before punctuation for its own.
        assert not [formula for formula in inline if re.search(r"\\\W|[<>*|]", formula)], page.name
        for formula in blocks + inline:
            assert "\\" not in hooks["mathml"]("span", formula), formula


def test_folded_tables_of_results_are_read_as_markdown():
    assert "md_in_html" in site_settings()["markdown_extensions"]
    for page in (ROOT / "docs/results").glob("*.md"):
        assert not re.findall(r"<details>\n", page.read_text(encoding="utf-8")), page


def site_settings() -> dict:
    return yaml_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_the_site_names_every_page():
    site = site_settings()

    def pages(entries):
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    docs = ROOT / "docs"
    written = sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))
    assert sorted(pages(site["nav"])) == written


def test_the_site_has_previous_and_next_and_links_the_repository_that_it_is_told(monkeypatch):
    monkeypatch.delenv("REPOSITORY_URL", raising=False)
    assert "navigation.footer" in site_settings()["theme"]["features"]
    assert site_settings()["repo_url"] is None
    monkeypatch.setenv("REPOSITORY_URL", "https://example.org/hrp")
    assert site_settings()["repo_url"] == "https://example.org/hrp"


def test_the_api_reference_has_every_public_name_and_each_is_where_it_says():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    paths = re.findall(r"^::: ([\w.]+)$", text, re.M)
    for path in paths:
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path
    headed = re.findall(r"heading: hrp\.(\w+)", text)
    assert sorted(headed) == sorted(hrp.__all__)
    assert {path.rpartition(".")[2] for path in paths} == {*headed, "Checkpoints"}


def test_no_page_speaks_of_the_folder_as_it_was_called_before():
    for page in PAGES:
        assert not re.search(r"(?<!-)\bpreheating/(?!\s)", page.read_text("utf-8")), page
