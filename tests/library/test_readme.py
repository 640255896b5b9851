"""The README's Python runs as it stands, with the embedded model for the hub's."""

from __future__ import annotations

import doctest
import importlib
import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path
from statistics import fmean, stdev

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import hrp
from helpers.tiny import collate, loader, token_rows
from hrp.cli import COMMANDS, main
from hrp.report.table import DASH
from hrp_lab.bench.record_store import load_records
from hrp_lab.cli import COMMANDS as LAB_COMMANDS

ROOT = Path(hrp.__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASE = str(Path(hrp.__file__).parent / "demo" / "base")


def test_the_readme_leads_with_the_two_commands():
    first = re.search(r"```sh\n(.*?)```", README, re.DOTALL).group(1)
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make demo", "make test"]


def test_the_readme_fits_and_holds_the_table_between_its_marks():
    assert len(README.splitlines()) <= 130
    table = README.partition("<!-- results:begin -->\n")[2].partition("<!-- results:end -->")[0]
    assert 3 <= len(table.splitlines()) - 2 <= 8


def test_the_readme_names_the_floors_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = dict(word.split(">=") for word in project["dependencies"])
    named = dict(re.findall(r"(torch|transformers|peft|accelerate|Python) (\d+\.\d+)", README))
    assert named.pop("Python") == project["requires-python"].removeprefix(">=")
    assert named == {name: floors[name] for name in named}
    assert len(named) == 4


def made_trainer(model: PeftModel, folder: Path) -> Trainer:
    args = TrainingArguments(
        output_dir=str(folder), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True
    )
    return Trainer(model, args, train_dataset=token_rows(), data_collator=collate)


def test_the_lines_for_a_trainer_a_loop_and_a_callback_run_as_printed(tmp_path, monkeypatch):
    for_trainer, for_loop, for_callback = PYTHON
    assert len([line for line in for_trainer.splitlines() if line]) <= 8
    preheated = []

    def watched(*words, **named):
        spectrum = hrp.preheating.pipeline.preheat(*words, **named)
        preheated.append(spectrum.provenance["steps"])
        return spectrum

    monkeypatch.setattr("hrp.initialization.preheat", watched)
    namespace = {
        "args": made_trainer(hrp_model(), tmp_path).args,
        "train_dataset": token_rows(),
        "collator": collate,
    }

    def run(text: str) -> None:
        exec(compile(text, "README.md", "exec"), namespace)  # noqa: S102 -- our own README

    run(for_trainer.replace("meta-llama/Llama-3.2-1B", BASE))
    assert isinstance(namespace["model"], PeftModel)
    namespace |= {"model": hrp_model(), "train_dataloader": loader()}
    run(for_loop.replace("total_steps=1000", "total_steps=10"))
    namespace["trainer"] = made_trainer(hrp_model(), tmp_path)
    run(for_callback)
    namespace["trainer"].train()
    assert preheated == [1, 2, 1]  # a fifth of two steps, of ten, of two


# The row of README's table -> the records that it is of; `{}` is the number of steps.
ROWS = {
    "LoRA, PEFT's default": ("kept-gsm8k-{}", "lora"),
    "LoRA from HRP": ("kept-gsm8k-{}", "hrp-ab"),
    "DoRA": ("kept-gsm8k-{}", "dora"),
    "DoRA from HRP": ("kept-gsm8k-{}", "dora-hrp-ab"),
    "best start of another kind † (gradient-svd)": ("standin-gsm8k-{}", "gradient-svd"),
    "full fine-tuning †": ("standin-gsm8k-{}", "full"),
    "oracle: full fine-tuning's own directions": ("kept-gsm8k-{}", "oracle-b"),
}


def losses_at_best_rate(experiment: str, arm: str, budget: str = "equal_total") -> list[float]:
    """Return the losses of an arm's three seeds at the rate, and length, of their lowest mean."""
    settings: dict[tuple[float, int], list[float]] = {}
    for record in load_records(ROOT / "experiments/results" / f"{experiment}.jsonl"):
        run = record.run
        if run.arm == arm and run.config["budget"] == budget and record.status == "ok":
            setting = (run.learning_rate, run.config.get("hrp", {}).get("preheat_steps", 0))
            settings.setdefault(setting, []).append(record.metrics["eval_loss"])
    return min((losses for losses in settings.values() if len(losses) == 3), key=fmean)


@pytest.mark.parametrize(("column", "steps"), [(1, 450), (2, 930), (3, 1860)])
def test_every_number_of_the_readme_s_table_is_that_of_the_records(column, steps):
    table = README.partition("<!-- results:begin -->\n")[2].partition("<!-- results:end -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert {row[0] for row in rows} == set(ROWS)
    for row in rows:
        experiment, arm = ROWS[row[0]]
        if row[column] == DASH:
            assert steps == 1860
            continue
        losses = losses_at_best_rate(experiment.format(steps), arm)
        assert (
            row[column].removesuffix(" (edge)") == f"{fmean(losses):.4f} ± {stdev(losses):.4f}"
        ), row[0]


@pytest.mark.parametrize(
    ("sentence", "arm", "experiments", "budget"),
    [
        ("LoRA has {} and {} there", "lora", "standin-gsm8k", "equal_total"),
        ('"AB" has {} and {}', "hrp-ab", "kept-gsm8k", "equal_compute"),
        ("shared by five runs gives {} and {}", "hrp-ab", "kept-gsm8k", "amortised"),
    ],
)
def test_the_numbers_beside_the_readme_s_table_are_those_of_the_records(
    sentence, arm, experiments, budget
):
    means = [
        f"{fmean(losses_at_best_rate(f'{experiments}-{steps}', arm, budget)):.4f}"
        for steps in (450, 930)
    ]
    assert sentence.format(*means) in " ".join(README.split())


@pytest.mark.parametrize(
    ("row", "experiment"),
    [
        ("r = 4", "kept-gsm8k-450"),
        ("r = 8", "kept-gsm8k-r8"),
        ("r = 16", "kept-gsm8k-r16"),
        ("r = 32", "kept-gsm8k-r32"),
        ("r = 4, 1860 steps", "kept-gsm8k-1860"),
    ],
)
def test_the_losses_at_other_ranks_in_the_docs_are_those_of_the_records(row, experiment):
    text = (ROOT / "docs/choosing.md").read_text()
    (line,) = re.findall(rf"^\| {row} \|(.*)\|$", text, re.M)
    for cell, arm in zip(line.split("|"), ("lora", "hrp-ab", "dora", "dora-hrp-ab"), strict=True):
        if cell.strip():
            loss = fmean(losses_at_best_rate(experiment, arm))
            assert cell.split()[0] == f"{loss:.4f}", arm


def test_the_other_starts_are_none_below_lora_as_the_readme_says():
    others = ("eva", "lora_ga", "pissa", "olora", "corda", "mica", "orthogonal", "gaussian")
    for experiment in ("standin-gsm8k-450", "standin-gsm8k-930"):
        best = fmean(losses_at_best_rate(experiment, "gradient-svd"))
        assert fmean(losses_at_best_rate(experiment, "lora")) < best
        assert all(best < fmean(losses_at_best_rate(experiment, arm)) for arm in others)


def test_every_make_target_and_extra_that_the_readme_prints_is_there():
    targets = re.findall(r"^make (\w+)", README, re.M)
    makefile = (ROOT / "Makefile").read_text()
    assert targets
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = ("docs/index.md", "examples/README.md")
    pages = README + "".join((ROOT / name).read_text() for name in names)
    named = re.findall(r"pip install '\.\[(\w+)\]'", pages)
    assert named
    assert set(named) <= set(project["optional-dependencies"])


@pytest.mark.parametrize(
    ("script", "records", "page"),
    [
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
    section = README.partition("## From the command line\n")[2].partition("\n## ")[0]
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
    "module", ["hrp.config", "hrp.spectra.factorization", "hrp.spectra.module_spectrum"]
)
def test_docstring_examples_hold(module):
    import torch

    result = doctest.testmod(importlib.import_module(module), extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
