"""Experiments that need the hub: every arm of each runs, on a tiny model of its architecture.

The models are random, the rows local, in the columns of the hub's data. Each run takes two steps
or more of fine-tuning, so a slip in a file, a task or an arm is found before an hour is paid for.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
import yaml
from transformers import T5Config, T5ForConditionalGeneration

from helpers.tiny import tiny_llama
from helpers.tiny_bench import word_tokenizer, write_lines
from hrp_lab.bench.context import Bench, Places
from hrp_lab.bench.protocol import experiment_from, load_experiment, plan
from hrp_lab.bench.run import execute
from hrp_lab.bench.tasks.glue import SUBSETS

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
LLAMA = ("nlg-llama-1b", "nlg-llama-7b", "costs-llama-1b")
T5 = ("nlu-t5-base", "variants-t5-base", "ablation-preheating")
STEPS, PREHEAT_STEPS = 8, 1
BATCH = 16  # smaller steps would cost less than a start's SVD, and nothing be left to fine-tune
WORDS = (
    "<pad>", "<eos>", "<unk>", "Question:", "Answer:", "one", "two", "plus", "####", "1", "2", "3",
    "The", "answer", "is:", "good", "bad", "cola", "sst2", "mrpc", "qnli", "mnli", "sentence:",
    "sentence1:", "sentence2:", "question:", "premise:", "hypothesis:",
    *dict.fromkeys(word for subset in SUBSETS.values() for word in subset.words),
)  # fmt: skip
# What cannot run on an architecture, and says so; nothing else may.
NOT_APPLICABLE: dict[str, set[str]] = {}


def write_model(folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "llama":
        model = tiny_llama(vocab_size=64, max_position_embeddings=64, eos_token_id=1)
    else:
        model = T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                     pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
        )  # fmt: skip
    model.save_pretrained(folder)
    word_tokenizer(WORDS, ends=kind == "t5").save_pretrained(folder)


def write_rows(folder: Path) -> None:
    """Write rows in the columns of MetaMathQA, GSM8K and GLUE."""

    math = [f"one plus two {n % 3 + 1}" for n in range(24)]
    write_lines(
        folder / "metamath.jsonl",
        [{"query": text, "response": f"{text} The answer is: 3", "type": "x",
          "original_question": text} for text in math],
    )  # fmt: skip
    write_lines(folder / "test.jsonl", [{"question": t, "answer": f"{t} #### 3"} for t in math[:6]])
    for name, subset in SUBSETS.items():
        rows = [
            dict.fromkeys(subset.columns, f"{('good', 'bad')[n % 2]} one")
            | {"label": n % len(subset.words), "idx": n}
            for n in range(24)
        ]
        write_lines(folder / name / "train.jsonl", rows)
        write_lines(folder / name / f"{subset.validation}.jsonl", rows[:6])


def tiny(name: str) -> dict:
    """Return the experiment's settings, cut down: one rate and seed, few steps, small ranks."""
    settings = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
    shrunk = {"steps": STEPS, "batch_size": BATCH, "seeds": [0], "widen": 0}
    settings |= shrunk | {"learning_rates": settings["learning_rates"][:1]}
    settings["lora"] = settings["lora"] | {"r": 2, "lora_alpha": 4}
    settings["hrp"] = settings.get("hrp", {}) | {"preheat_rank": 8, "preheat_steps": PREHEAT_STEPS}
    settings |= {"gradient": {"batches": 1}, "covariance": {"rows": 4}}
    settings["arms"] = [_first_values(arm) for arm in settings["arms"]]
    settings["tasks"] = [_few_rows(task) for task in settings["tasks"]]
    return settings


def _first_values(arm):
    if isinstance(arm, str):
        return arm
    small = dict(arm)
    if "hrp" in arm:
        small["hrp"] = {key: value for key, value in arm["hrp"].items()
                        if key not in ("preheat_rank", "preheat_steps")}  # fmt: skip
    if "learning_rates" in arm:
        small["learning_rates"] = arm["learning_rates"][:1]
    return small


def _few_rows(task):
    if isinstance(task, str):
        return task
    options = dict(task["options"]) | {"max_length": 32}
    options["generate_rows"] = min(options["generate_rows"], 2)
    return {**task, "options": options | {"max_new_tokens": 2}}


def test_every_experiment_without_records_is_here():
    recorded = {path.stem for path in (EXPERIMENTS / "results").glob("*.jsonl")}
    hub = {
        path.stem for path in EXPERIMENTS.glob("*.yaml")
        if "/" in load_experiment(path).model
    }  # fmt: skip
    assert hub == {*LLAMA, *T5}
    assert not hub & recorded


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PEFT's arms warn of their own accord
@pytest.mark.parametrize("name", [*LLAMA, *T5])
def test_every_arm_takes_two_steps_on_a_tiny_model_of_the_architecture(name, tmp_path):
    kind = "llama" if name in LLAMA else "t5"
    write_model(tmp_path / "model", kind)
    write_rows(tmp_path / "data")
    experiment = experiment_from(tiny(name))
    whole = load_experiment(EXPERIMENTS / f"{name}.yaml")
    assert {arm["name"] for arm in experiment.arms} == {arm["name"] for arm in whole.arms}
    bench = Bench(
        Places(
            records=tmp_path / "records", cache=tmp_path / "cache", model=str(tmp_path / "model"),
            dataset=str(tmp_path / "data"),
        )
    )  # fmt: skip
    failures = []
    for run in plan(experiment, {}):
        record = execute(bench, run)
        if record.status == "ok":
            assert record.costs.finetune_steps >= 2, run.arm
            assert run.config["metric"] in record.metrics
        elif record.status == "failed" or run.arm not in NOT_APPLICABLE.get(kind, ()):
            failures.append(f"{run.task} {run.arm} {run.config['budget']}: {record.reason[-600:]}")
    assert failures == []


def test_the_settings_that_are_cut_down_are_those_of_size_alone():
    for name in itertools.chain(LLAMA, T5):
        whole = yaml.safe_load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"))
        small = tiny(name)
        for key in ("training", "budgets", "dtype", "model"):
            assert small.get(key) == whole.get(key)
