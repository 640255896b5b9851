"""The examples run as printed, offline: each on the embedded model, and with one name changed."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import hrp
from hrp.demo import BASE
from hrp.demo.data import answer_collator, answer_dataset, read_problems

ROOT = Path(hrp.__file__).parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
NOTEBOOK = EXAMPLES / "pictures.ipynb"
LANGUAGE_MODELS = ("plain_loop", "hf_trainer", "sft_trainer", "dora_4bit")
LINES_AT_MOST = 60


def flags_of(script: Path) -> set[str]:
    """Return the flags that a script's parser takes, read in its source."""
    return set(re.findall(r'add_argument\("(--\w+)"', script.read_text(encoding="utf-8")))


def printed_commands() -> list[list[str]]:
    """Collect the commands that run an example, from the scripts, their page and the docs."""
    pages = [EXAMPLES / "README.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    texts += [str(ast.get_docstring(ast.parse(script.read_text("utf-8")))) for script in SCRIPTS]
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("python examples/")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run an example by its printed words in an empty folder; return what it has defined."""

    def run_script(name: str, *words: str) -> dict[str, Any]:
        monkeypatch.chdir(tmp_path)
        script = str(EXAMPLES / f"{name}.py")
        unquantised = ("--unquantised",) * (name == "dora_4bit")
        monkeypatch.setattr("sys.argv", [script, *words, *unquantised])
        return runpy.run_path(script, run_name="__main__")

    return run_script


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> str:
    """A tiny model of another architecture, whose tokenizer has no padding, as many of the hub."""
    folder = tmp_path_factory.mktemp("hub") / "other"
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.pad_token = None
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def loss_on_new_problems(model: Any) -> float:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    rows = answer_dataset(tokenizer, read_problems("test")[:8])
    return float(model.eval()(**answer_collator(tokenizer)(rows)).loss)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_an_example_starts_below_its_base_and_leaves_an_adapter_that_plain_peft_loads(
    name, run, monkeypatch
):
    starts = []

    def watched(subject: Any, *words: Any, **named: Any) -> Any:
        started = hrp.initialization.apply_hrp(subject, *words, **named)
        starts.append(loss_on_new_problems(started))
        return started

    monkeypatch.setattr(hrp, "apply_hrp", watched)
    run(name, "--steps", "5")
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    before = loss_on_new_problems(base)
    adapter = PeftModel.from_pretrained(base, f"runs/{name}")
    assert adapter.peft_config["default"].use_dora == (name == "dora_4bit")
    (start,) = starts
    assert start < before - 0.05
    assert loss_on_new_problems(adapter) < start - 0.2


def test_the_classifier_of_the_example_is_saved_with_its_head(run):
    trained = run("classification", "--steps", "3")["trainer"].model
    base = AutoModelForSequenceClassification.from_pretrained(
        BASE, num_labels=3, pad_token_id=1, dtype=torch.float32
    )
    loaded = PeftModel.from_pretrained(base, "runs/classification").eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    batch = tokenizer([problem["question"] for problem in read_problems("test")[:3]], padding=True)
    batch = {name: torch.tensor(batch[name]) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.allclose(loaded(**batch).logits, trained.eval()(**batch).logits, atol=1e-5)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_runs_with_only_the_model_s_name_changed(script, run, other_model):
    run(script.stem, "--model", other_model, "--steps", "2")
    written = json.loads(Path(f"runs/{script.stem}/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == other_model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:inner dimension")  # bitsandbytes on so narrow a base
def test_dora_on_a_base_in_four_bits_starts_from_preheating_and_learns(tmp_path, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.chdir(tmp_path)
    script = str(EXAMPLES / "dora_4bit.py")
    monkeypatch.setattr("sys.argv", [script, "--steps", "20"])
    trainer = runpy.run_path(script, run_name="__main__")["trainer"]
    assert trainer.model.get_base_model().is_loaded_in_4bit
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]
    assert Path("runs/dora_4bit/adapter_model.safetensors").is_file()


def test_every_printed_command_names_an_example_and_flags_that_it_takes():
    commands = printed_commands()
    assert {Path(script).name for _, script, *_ in commands} == {s.name for s in SCRIPTS}
    for _, script, *words in commands:
        flags = {word for word in words if word.startswith("--")}
        assert flags <= flags_of(ROOT / script), script


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_is_short_and_shows_how_it_is_run(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_AT_MOST
    assert f"python examples/{script.name}" in str(ast.get_docstring(ast.parse(text)))


def test_the_page_of_the_examples_names_each_of_them():
    linked = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(path.name for path in [*SCRIPTS, NOTEBOOK])


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_order_and_show_that_the_start_has_learned(
    tmp_path, monkeypatch
):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf().axes[0].get_title()))
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(code):
        cell = cell.replace("STEPS = 100 ", "STEPS = 20 ")
        exec(compile(cell, f"cell {number}", "exec"), namespace)  # noqa: S102 -- our own notebook
    assert namespace["STEPS"] == 20
    assert len(shown) == 4
    plt.close("all")
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    saved = PeftModel.from_pretrained(base, "runs/notebook/adapter")
    assert namespace["test_loss"](saved) == pytest.approx(namespace["test_losses"]["HRP"], abs=1e-4)
    assert len(hrp.Spectrum.load("runs/notebook/spectrum")) == 28


def test_the_notebook_is_stored_without_outputs_and_its_code_compiles():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 6
    for cell in code:
        assert cell["outputs"] == []
        ast.parse("".join(cell["source"]))
