"""The README's Python runs as it stands, with the embedded model for the hub's."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import hrp
from helpers.tiny import collate, loader, token_rows
from hrp.cli import COMMANDS, main
from hrp_lab.cli import COMMANDS as LAB_COMMANDS

ROOT = Path(hrp.__file__).parents[2]
README = (ROOT / "README.md").read_text()
GSM8K_930 = "standin-gsm8k-930 experiments/results/standin-gsm8k-compute-930"
BASE = str(Path(hrp.__file__).parent / "demo" / "base")


def test_the_readme_leads_with_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", README, re.DOTALL).group(1)
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


def test_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    args = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    namespace = {
        "train_dataloader": loader(),
        "Trainer": Trainer,
        "args": args,
        "train_dataset": token_rows(),
        "collator": collate,
    }
    for block in blocks:
        text = block.replace("meta-llama/Llama-3.2-1B", BASE).replace(
            "total_steps=1000", "total_steps=10"
        )
        if "trainer" in text:
            namespace["model"] = hrp_model()
        exec(compile(text, "README.md", "exec"), namespace)  # noqa: S102 -- our own README
    assert isinstance(namespace["model"], PeftModel)
    assert len(hrp.Spectrum.load("spectrum")) > 0


@pytest.mark.parametrize(
    ("script", "records", "page"),
    [
        ("starts_table.py", GSM8K_930, "README.md"),
        ("starts_table.py", "standin-gsm8k-450", "docs/choosing.md"),
        ("starts_table.py", "standin-gsm8k-compute-930 --all", "docs/choosing.md"),
        ("starts_table.py", "standin-gsm8k-compute-930 --all", "lab/LOG.md"),
        ("starts_table.py", "standin-glue-rule --task glue-cola --all", "lab/LOG.md"),
        ("starts_table.py", "standin-glue-rule --task glue-sst2 --all", "lab/LOG.md"),
        ("starts_table.py", "standin-cola-default --all", "lab/LOG.md"),
        ("starts_table.py", "length-wordproblems --all", "lab/LOG.md"),
        ("arms_table.py", "stages-gsm8k", "lab/LOG.md"),
        ("starts_table.py", "standin-gsm8k-compute --all", "lab/LOG.md"),
        ("starts_table.py", "tries-wordproblems --control hrp-ab --all", "lab/LOG.md"),
        ("starts_table.py", "compute-wordproblems --all", "lab/LOG.md"),
        ("starts_table.py", "rate-wordproblems --all", "lab/LOG.md"),
        ("starts_table.py", "ablation-rule-wordproblems --all", "lab/LOG.md"),
        ("starts_table.py", "compute-rule-wordproblems --all", "lab/LOG.md"),
        ("starts_table.py", "compute-grid-wordproblems --all", "lab/LOG.md"),
        ("starts_table.py", "standin-cola-preheating-rate --all", "lab/LOG.md"),
        ("arms_table.py", "gsm8k-core", "lab/LOG.md"),
        ("arms_table.py", "stages-wordproblems", "lab/LOG.md"),
    ],
)
def test_the_table_of_starts_is_the_one_generated_from_the_records(
    script, records, page, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", [script, *shlex.split(f"experiments/results/{records}")])
    runpy.run_path(f"experiments/{script}", run_name="__main__")
    table = capsys.readouterr().out
    assert table.count("\n") >= 5
    assert table in (ROOT / page).read_text()


def test_the_command_line_example_runs_and_its_adapter_loads_as_it_says(tmp_path, monkeypatch):
    """The very words of the README, with the embedded model and a small file for the reader's."""
    monkeypatch.chdir(tmp_path)
    section = README.partition("## From the command line")[2].partition("\n## ")[0]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL).group(1)
    rows = ({"question": f"what is {i} plus 1?", "answer": f"it is {i + 1}."} for i in range(48))
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program, *words = shlex.split(block.replace("\\\n", "").replace("path/to/model", BASE))
    assert program == "hrp"
    assert main(words) == 0
    loading = re.search(r"`(PeftModel\.from_pretrained\(.*?\))`", section).group(1)
    base = AutoModelForCausalLM.from_pretrained(BASE)
    model = eval(loading, {"PeftModel": PeftModel, "base": base})  # noqa: S307 -- our own README
    assert model.peft_config["default"].r == 4
    assert hrp.Spectrum.load("runs/adapter/spectrum").provenance["steps"] == 3
    listed = set(re.findall(r"`(hrp(?:-lab)? \w+)`", " ".join(section.split())))
    assert listed >= {f"hrp {name}" for name in COMMANDS if name != "demo"}
    assert listed >= {f"hrp-lab {name}" for name in LAB_COMMANDS}


def hrp_model() -> PeftModel:
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(BASE, dtype="auto")
    return get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))


@pytest.mark.parametrize(
    "module", ["hrp.config", "hrp.spectra.factorization", "hrp.spectra.measures"]
)
def test_docstring_examples_hold(module):
    import torch

    result = doctest.testmod(importlib.import_module(module), extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
