from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import EvalPrediction

from helpers.faults import fault
from hrp import Spectrum
from hrp.cli import main as run_command
from hrp.cli import report
from hrp.cli.demo import main, run_demo
from hrp.demo import load_base
from hrp.demo.data import answer_collator, read_problems
from hrp.demo.runs import exact_answers, make_task
from hrp.demo.settings import ARMS, DemoConfig, Run
from hrp.demo.summary import best_arm, reading, table
from hrp.files import check_as_recorded

TINY = DemoConfig(steps=5, seeds=1, batch_size=2, train_problems=16, test_problems=8)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Run], str]:
    """The folder of a demo that replaced an earlier one, its runs, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "hrp-demo"
    out.mkdir()
    (out / "results.json").write_text('{"files": {}}')
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(socket.socket, "connect", refuse_to_connect)
        runs = run_demo(TINY, out, overwrite=True)
    return out, runs, printed.getvalue()


def refuse_to_connect(*_: object) -> None:
    raise AssertionError("the demo opened a network connection")


def make_run(arm: str, seed: int, loss: float, preheat_steps: int) -> Run:
    return Run(arm, seed, preheat_steps, 10, 1e-3, loss, 0.5, 1.0, [loss])


def test_every_arm_gets_the_same_total_of_steps_preheating_included(demo) -> None:
    _, runs, printed = demo
    assert [run.arm for run in runs] == [arm.name for arm in ARMS]
    assert {run.preheat_steps + run.steps for run in runs} == {TINY.steps}
    assert [run.preheat_steps for run in runs] == [0, 1, 1, 1, 0]
    assert all(len(run.losses) == run.steps for run in runs)
    assert len(re.findall(r"^\[\d/5\] .*about \d+ s left\)$", printed, re.M)) == len(runs)


def test_a_and_b_begin_at_the_loss_of_the_default_start_and_ab_does_not(demo) -> None:
    default, a, b, ab = (run.losses[0] for run in demo[1][:4])
    assert a == b == pytest.approx(default, rel=1e-6)
    assert ab < default


def test_preheating_s_rate_is_that_of_the_config_and_of_the_spectrum_s_provenance(demo) -> None:
    provenance = Spectrum.load(demo[0] / "spectrum").provenance
    assert provenance["learning_rate"] == DemoConfig().preheat_learning_rate
    assert provenance["config"]["learning_rate"] == DemoConfig().preheat_learning_rate
    assert provenance["cost"]["examples"] == TINY.preheat_steps * TINY.batch_size


def test_the_run_has_its_page_and_the_adapter_our_card(demo) -> None:
    out = demo[0]
    page = (out / "report.html").read_text()
    assert f"<h2>Spectrum {out}</h2>" in page
    assert "Answers before and after" in page
    card = (out / "adapter" / "README.md").read_text()
    assert "Trained with `hrp demo` on `made arithmetic word problems`" in card
    assert "| preheat_learning_rate | `0.002` |" in card


def test_the_first_test_problems_are_answered_before_and_after(demo) -> None:
    samples = json.loads((demo[0] / "results.json").read_text())["samples"]
    problems = read_problems("test")
    assert [sample["question"] for sample in samples] == [p["question"] for p in problems[:3]]
    assert [sample["reference"] for sample in samples] == [p["answer"] for p in problems[:3]]
    assert all(sample["before"] != sample["after"] for sample in samples)


def test_a_demo_whose_page_was_made_anew_is_still_a_demo_s(demo, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    shutil.copytree(demo[0], out)
    (out / "report.html").unlink()
    assert report.main([str(out)]) == 0
    check_as_recorded(out, "results.json")


def test_the_saved_adapter_loads_in_plain_peft_with_the_reported_loss(demo) -> None:
    out, runs, _ = demo
    base, tokenizer = load_base()
    model = PeftModel.from_pretrained(base, out / "adapter").eval()
    batch = answer_collator(tokenizer)(make_task(TINY).test)
    with torch.no_grad():
        loss = float(model(**batch).loss)
    best = min(run.test_loss for run in runs if run.preheat_steps)
    assert loss == pytest.approx(best, abs=1e-4)


def test_the_saved_spectrum_covers_the_adapters_modules(demo) -> None:
    spectrum = Spectrum.load(demo[0] / "spectrum")
    assert len(spectrum) == 4 * 7
    assert {module.rank for module in spectrum.values()} == {TINY.preheat_rank}


def test_the_record_holds_every_run_and_names_the_saved_one(demo) -> None:
    out, runs, _ = demo
    record = json.loads((out / "results.json").read_text())
    assert [Run(**row) for row in record["runs"]] == runs
    best = min((run for run in runs if run.arm == best_arm(runs)), key=lambda run: run.test_loss)
    assert record["saved"] == {"arm": best.arm, "seed": best.seed}


def test_an_existing_folder_is_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("mine")
    assert main(["--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"hrp demo: .* exists; .*--overwrite", captured.err)
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_folder_with_anything_but_a_demo_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text("from an earlier demo")
    (tmp_path / "kept").write_text("mine")
    assert main(["--out", str(tmp_path), "--overwrite"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"'{tmp_path}' holds 'kept' and 1 more, which hrp did not write" in captured.err
    assert (tmp_path / "kept").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused_before_any_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--out", str(tmp_path / "file" / "demo")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"'{tmp_path / 'file'}' is no folder; choose another" in captured.err


@fault(
    "Whose file is it",
    "your own `results.json`",
    command="demo",
    outcome="`--overwrite` is refused by name",
)
@pytest.mark.parametrize("name", ["results.json", "adapter/README.md"])
def test_a_user_s_file_of_the_name_of_one_of_the_demo_s_is_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    assert main(["--out", str(tmp_path), "--overwrite"]) == 2
    assert f"holds '{name}', which hrp did not write" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [("--steps", "1", "`steps`"), ("--seeds", "0", "`seeds`"), ("--seed", "-1", "`seed`")],
)
def test_a_bad_number_is_named_without_a_traceback(
    argument: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument, value]) == 2
    assert message in capsys.readouterr().err


def test_the_flags_make_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[DemoConfig] = []
    monkeypatch.setattr("hrp.cli.demo.run_demo", lambda config, *_: given.append(config))
    assert main(["--quick", "--seed", "5", "--out", str(tmp_path / "out")]) == 0
    assert given == [DemoConfig(steps=60, seeds=1, seed=5)]


def test_the_command_prints_the_table_and_the_lines_that_load_the_adapter(demo) -> None:
    out, runs, printed = demo
    assert all(f"\n{arm.name}" in printed for arm in ARMS)
    assert "base, tokenizer = hrp.demo.load_base()" in printed
    assert f'model = peft.PeftModel.from_pretrained(base, "{out / "adapter"}")' in printed
    assert f"In pictures: {out / 'report.html'}\n" in printed
    assert f"{best_arm(runs)} of seed 0 as a plain PEFT adapter" in printed
    assert printed.count("  before: ") == printed.count("  after: ") == 3
    *next_commands, sft = re.findall(r"^    hrp (.+)$", printed, re.M)
    assert len(next_commands) == 2
    for command in next_commands:
        assert run_command(shlex.split(command)) == 0
    flags = dict(zip(*[iter(shlex.split(sft)[1:])] * 2, strict=True))
    assert flags.keys() == {"--model_name_or_path", "--dataset_path", "--output_dir"}


@pytest.mark.slow
def test_the_command_runs_from_beginning_to_end_on_two_seeds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["--steps", "2", "--seeds", "2", "--out", str(out)]) == 0
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [run["seed"] for run in runs] == [0] * len(ARMS) + [1] * len(ARMS)


def test_overwrite_replaced_what_was_in_the_folder(demo) -> None:
    adapter = ("README.md", "adapter_config.json", "adapter_model.safetensors")
    spectrum = ("spectrum.json", "spectrum.safetensors")
    kept = {"results.json", "report.html"}
    kept |= {f"adapter/{name}" for name in adapter} | {f"spectrum/{name}" for name in spectrum}
    files = (path for path in demo[0].rglob("*") if path.is_file())
    assert {path.relative_to(demo[0]).as_posix() for path in files} == kept
    json.loads((demo[0] / "results.json").read_text())


def test_exact_counts_answers_right_to_the_last_token() -> None:
    labels = np.array([[-100, 5, 6, -100], [-100, 5, 6, 7]])
    greedy = np.array([[5, 6, 9, 9], [5, 6, 8, 9]])
    assert exact_answers(EvalPrediction(greedy, labels)) == {"exact": 0.5}


def make_runs(default: list[float], preheated: list[float]) -> list[Run]:
    pairs = enumerate(zip(default, preheated, strict=True))
    return [
        run
        for seed, (one, two) in pairs
        for run in (make_run("default", seed, one, 0), make_run("HRP", seed, two, 2))
    ]


def test_the_table_shows_means_spreads_and_differences() -> None:
    _, _, first, second = table(make_runs([2.0, 1.0], [1.25, 0.75])).splitlines()
    assert " ".join(first.split()) == "default 0 10 1e-03 1.5000 1.0000 +0.0000 50.0% 1.0"
    assert " ".join(second.split()) == "HRP 2 10 1e-03 1.0000 0.5000 -0.5000 50.0% 1.0"


def said_of(runs: list[Run]) -> str:
    return " ".join(reading(runs).split())


def test_the_reading_counts_the_seeds_on_which_the_best_hrp_start_was_lower() -> None:
    said = said_of(make_runs([1.0, 1.0], [0.25, 1.25]))
    assert "HRP, the best HRP start, is 0.2500 below default in test loss (lower on 1 of 2" in said


def test_the_arm_said_to_be_best_has_the_lowest_mean_and_not_the_luckiest_run() -> None:
    runs = [
        make_run(arm, seed, loss, 0 if arm == "default" else 2)
        for arm, losses in {"default": (2.0, 2.0), "lucky": (0.1, 1.9), "good": (0.6, 0.7)}.items()
        for seed, loss in enumerate(losses)
    ]
    assert best_arm(runs) == "good"
    assert "good, the best HRP start" in reading(runs)


def test_the_reading_says_what_goes_against_hrp() -> None:
    said = said_of(make_runs([1.0, 1.0], [0.25, 1.25]))
    assert "exact answers are 50.0% with HRP and 50.0% with default." in said
    full = Run("full", 0, 0, 10, 1e-3, 0.1, 0.5, 1.0, [])
    assert "a lower loss still: full." in said_of([*make_runs([1.0], [0.5]), full])


def test_the_reading_names_the_default_direction_where_another_is_best() -> None:
    said = said_of([*make_runs([1.0], [0.5]), make_run('HRP "AB"', 0, 1.25, 2)])
    assert '"AB", the default direction, is 0.2500 above default in test loss (lower on 0' in said


def test_the_reading_says_so_where_no_hrp_start_wins() -> None:
    said = said_of(make_runs([1.0], [1.5]))
    assert "HRP, the best HRP start, is 0.5000 above default in test loss (lower on 0 of 1" in said
