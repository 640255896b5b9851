"""The task from the standard library: held out by module, the same rows every time."""

from __future__ import annotations

import ast
import sysconfig
from pathlib import Path

import pytest

from helpers.tiny_bench import BASE as SETTINGS
from hrp.demo import BASE
from hrp_lab.bench.context import Bench, Places
from hrp_lab.bench.protocol import experiment_from, plan
from hrp_lab.bench.run import execute
from hrp_lab.bench.tasks import TaskRequest, load_task
from hrp_lab.bench.tasks.function_names import held_out, splits

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def rows():
    return splits()


def test_there_are_enough_rows_and_about_a_fifth_of_the_modules_is_held_out(rows):
    train, test = rows
    assert len(train) > 1500
    assert len(test) > 150
    modules = {path.relative_to(LIBRARY).parts[0] for path in LIBRARY.rglob("*.py")}
    assert 0.1 < sum(map(held_out, modules)) / len(modules) < 0.3


def test_the_split_is_by_module_and_no_prompt_is_in_both(rows):
    train, test = rows
    assert not {prompt for prompt, _ in train} & {prompt for prompt, _ in test}
    assert held_out("json/decoder.py") == held_out("json/encoder.py") == held_out("json")
    kept = held_out("textwrap.py")
    names = {
        node.name for node in ast.walk(ast.parse((LIBRARY / "textwrap.py").read_text()))
        if isinstance(node, ast.FunctionDef)
    }  # fmt: skip
    own = {("dedent", "Remove any common leading whitespace")}
    assert {name for name, _ in own} <= names
    where, other = (test, train) if kept else (train, test)
    found = [pair for pair in where if pair[1] == "dedent"]
    assert any("common leading whitespace" in prompt for prompt, _ in found)
    assert not any("common leading whitespace" in prompt for prompt, _ in other)


def test_rows_and_their_order_are_the_same_each_time_and_no_prompt_gives_its_answer_away(rows):
    assert splits() == rows
    for prompt, name in (*rows[0], *rows[1]):
        assert name not in prompt.removesuffix("\nFunction: ").removeprefix("Describe: ")


def test_a_dataset_is_refused():
    with pytest.raises(ValueError, match="`dataset` must be None"):
        load_task(TaskRequest("function-names", str(BASE), "folder"))


def test_an_arm_runs_on_it(tmp_path):
    options = {"train_rows": 16, "test_rows": 8}
    changes = {
        "model": str(BASE), "arms": ["hrp-ab"], "steps": 3, "batch_size": 4,
        "tasks": [{"name": "function-names", "options": options}],
    }  # fmt: skip
    (run,) = plan(experiment_from(SETTINGS | changes), {})
    record = execute(Bench(Places(records=tmp_path / "r", cache=tmp_path / "c")), run)
    assert record.status == "ok", record.reason
    assert record.metrics["eval_loss"] > 0
