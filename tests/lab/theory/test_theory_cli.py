"""``hrp-lab theory``: exit statuses, tables, records, figures; and what the lab imports."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

import hrp_lab.theory as theory
from hrp_lab.cli import main as lab_main
from hrp_lab.cli.theory_commands import main
from hrp_lab.theory import check, flow_preheating
from hrp_lab.theory import cut_statements as cuts
from hrp_lab.theory import preheating_statements as preheated
from hrp_lab.theory import start_statements as starts
from hrp_lab.theory.check import CheckConfig, check_all
from hrp_lab.theory.flow_preheating import Preheated
from hrp_lab.theory.rows import exact, sampled

COMMANDS = ("check", "figure1", "sweep", "truncation")


def test_check_holds_exits_with_0_and_records_its_table(tmp_path, capsys):
    path = tmp_path / "new" / "check.json"
    assert lab_main(["theory", "check", "--record", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "BROKEN" not in printed
    for statement in ("T1", "P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9", "P10", "P11"):
        assert f"\n{statement} " in printed
    record = json.loads(path.read_text())
    assert record["command"] == f"hrp-lab theory check --record {path}"
    assert record["settings"] == {"draws": 2000, "seed": 0}
    assert all(row["holds"] for row in record["table"])
    assert len(record["table"]) == printed.count(" holds\n")
    assert {"numpy", "scipy", "torch", "hrp-lora", "python"} <= set(record["versions"])


def test_a_broken_prediction_exits_with_1_and_says_which(monkeypatch, capsys):
    right = starts.wise_asymmetric_loss
    monkeypatch.setattr(starts, "wise_asymmetric_loss", lambda *args: right(*args) * (1 + 1e-7))
    assert main(["check", "--draws", "50"]) == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.endswith("BROKEN")]
    assert len(broken) == 2
    assert all(line.startswith("P2 ") for line in broken)


@pytest.mark.parametrize(("stand_in", "rows"), [("plain SVD", 5), ("other side", 6)])
def test_a_cut_that_is_not_the_best_exits_with_1_and_breaks_p11_only(
    monkeypatch, capsys, stand_in, rows
):
    right = flow_preheating.loss_truncation

    def wrong(S, left_metric, right_metric, rank, damping):
        if stand_in == "plain SVD":
            damping = 1e13
        else:
            left_metric, right_metric = right_metric, left_metric
        return right(S, left_metric, right_metric, rank, damping)

    monkeypatch.setattr(flow_preheating, "loss_truncation", wrong)
    assert main(["check", "--draws", "50"]) == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.endswith("BROKEN")]
    assert len(broken) >= rows
    assert all(line.startswith("P11 ") for line in broken)


def broken_statements(statement, draws=400) -> set[str]:
    rows = statement(draws, np.random.default_rng(0))
    return {row.statement for row in rows if not row.holds}


unharmed = functools.cache(broken_statements)


@pytest.mark.parametrize(
    ("module", "name", "factor", "statement", "breaks"),
    [
        (starts, "random_limit", 1.02, check.random_limits, "T1"),
        (starts, "random_path", 1.02, check.random_limits, "P9"),
        (starts, "asymmetric_factor", 1.001, check.asymmetric_paths, "P1"),
        (starts, "asymmetric_loss", 1.001, check.asymmetric_paths, "P1"),
        (starts, "wise_asymmetric_loss", 1.001, check.wise_asymmetric, "P2"),
        (starts, "wise_classic_loss", 1.001, check.wise_classic, "P3"),
        (starts, "wise_classic_rates", 1.001, check.wise_classic, "P3"),
        (preheated, "same_direction_loss", 1.001, check.preheated, "P4"),
        (preheated, "other_direction_loss", 1.001, check.preheated, "P5"),
        (preheated, "flat_same_direction_mean", 1.02, check.flat_mean, "P6"),
        (preheated, "same_direction_ceiling", 0.9, check.effective_rank_bounds, "P8"),
        (preheated, "same_direction_floor", 1.2, check.effective_rank_bounds, "P8"),
        (preheated, "range_finder_bound", 0.3, check.range_finder, "P5"),
        (cuts, "full_space_cut", 1.001, check.truncation, "P11"),
        (cuts, "least_cost", 1.001, check.truncation, "P11"),
    ],
)
def test_a_prediction_that_is_a_little_off_is_broken(
    monkeypatch, module, name, factor, statement, breaks
):
    assert not unharmed(statement)
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: factor * right(*args, **kwargs))
    assert breaks in broken_statements(statement)


@pytest.mark.parametrize("fault", ["a little more damping", "a mean without weights"])
def test_another_damping_breaks_p11(monkeypatch, fault):
    right = cuts.damped

    def wrong(metric, directions, S, damping):
        if fault == "a little more damping":
            return right(metric, directions, S, 1.01 * damping)
        return right(metric, directions, np.ones_like(S), damping)

    monkeypatch.setattr(cuts, "damped", wrong)
    assert broken_statements(check.truncation) == {"P11"}


def test_a_direction_that_is_lost_breaks_p5_p7_and_p10(monkeypatch):
    def trailing(self, rank, direction):
        return self.U[..., -rank:] if direction == "B" else self.Vh[..., -rank:, :].swapaxes(-1, -2)

    monkeypatch.setattr(Preheated, "directions", trailing)
    assert {"P4", "P5", "P10"} <= broken_statements(check.preheated)


def test_a_seed_reproduces_every_row(monkeypatch):
    monkeypatch.setattr(check, "STATEMENTS", (check.flat_mean, check.any_time))
    one, same, other = (check_all(CheckConfig(draws=50, seed=seed)) for seed in (3, 3, 4))
    assert one == same
    assert one != other


def test_rows_judge_by_their_relation_and_nan_never_holds():
    two, three = np.array([2.0, 2.0]), np.array([2.0, 3.0])
    assert not exact("X", "equal", [(two, three)]).holds
    assert exact("X", "equal", [(two, two + 1e-9)]).holds
    assert exact("X", "at least", [(two, three)], ">=").holds
    assert not exact("X", "at most", [(two, three)], "<=").holds
    assert exact("X", "at most", [(two, three)], "<=").measured == 3
    for relation in ("=", "<=", ">="):
        assert not exact("X", "nan", [(two, np.array([2.0, np.nan]))], relation).holds
    assert sampled("X", "mean", 2.5, three).holds
    assert not sampled("X", "mean", 4.1, three).holds
    assert sampled("X", "mean", 2.5, three).tolerance == pytest.approx(1.5)


def test_figure1_prints_its_table_and_writes_picture_and_record(tmp_path, capsys):
    path = tmp_path / "figure1.json"
    arguments = ["figure1", "--draws", "4", "--out", str(tmp_path), "--record", str(path)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "time: until L <= 1.01 L*" in printed
    assert sum(line.startswith(("classic", "asymmetric")) for line in printed.splitlines()) == 10
    picture = imread(tmp_path / "theory-figure1.png")
    assert picture[0, 0, 3] == 0  # no white box on a dark page
    record = json.loads(path.read_text())
    assert record["optimum"] == 5
    assert len(record["table"]) == 10
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "figure1.json",
        "theory-figure1.png",
    ]


def test_sweep_prints_its_table_and_writes_picture_and_record(tmp_path, capsys):
    path = tmp_path / "sweep.json"
    arguments = "sweep --spectrum flat --decay 3 --first 1 --shape 8 8 --rank 2 --draws 5"
    arguments += f" --preheat-ranks 2 8 --preheat-steps 1 5 --out {tmp_path} --record {path}"
    assert main(arguments.split()) == 0
    printed = capsys.readouterr().out
    assert "optimum 0.5000, random 1.1250, effective rank k_r 3.00" in printed
    assert (tmp_path / "theory-sweep.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(path.read_text())["table"]) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--draws", "1"], "hrp-lab theory check: `draws` must be an integer >= 2"),
        (
            ["figure1", "--preheat-rank", "1"],
            "hrp-lab theory figure1: `preheat_rank` must be an integer >= 2, got 1",
        ),
        (
            ["sweep", "--rank", "5"],
            "hrp-lab theory sweep: `preheat_rank` must be an integer >= 5, got 3",
        ),
        (["truncation", "--rank", "13"], "truncation: `preheat_rank` must be an integer >= 13"),
        *(([name, "--seed", "-1"], "`seed` must be an integer >= 0, got -1") for name in COMMANDS),
        (["sweep", "--draws", "3", "--step-size", "9"], "lower `step_size`"),
        (["sweep", "--spectrum", "flat", "--decay", "99"], "`k` must be an integer <= 24, got 99"),
    ],
)
def test_unusable_arguments_exit_with_2_and_one_line(capsys, arguments, message):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_ends_in_an_example(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert "example" in capsys.readouterr().out


def test_a_record_that_json_cannot_hold_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        check, "check_all", lambda config: [exact("P0", "nan", [(np.zeros(1), np.full(1, np.nan))])]
    )
    assert main(["check", "--record", str(tmp_path / "record.json")]) == 2
    assert "JSON" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


MODULES = sorted(Path(theory.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_examples_in_docstrings_hold(path):
    name = "hrp_lab.theory" if path.stem == "__init__" else f"hrp_lab.theory.{path.stem}"
    assert doctest.testmod(importlib.import_module(name)).failed == 0


ALLOWED_PACKAGES = {"numpy", "scipy", "torch", "jaxtyping"}
ALLOWED_MODULES = {
    "hrp.spectra.factorization",
    "hrp.spectra.truncation",
    "hrp.files",
    "hrp.validation",
}


def imported(path: Path) -> set[str]:
    """Return the full names of the modules that a file imports, here or in a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_the_lab_imports_numerics_and_the_librarys_pure_functions_only(path):
    packages = ALLOWED_PACKAGES | set(sys.stdlib_module_names)
    packages |= {"matplotlib"} if path.stem == "theory_plots" else set()
    for name in imported(path):
        known = name.split(".")[0] in packages or name in ALLOWED_MODULES
        assert known or name == "hrp_lab.theory" or name.startswith("hrp_lab.theory."), name


def test_the_lab_loads_without_peft_transformers_or_matplotlib():
    code = (
        "import sys, hrp_lab.theory.check, hrp_lab.theory.figure1, hrp_lab.theory.sweep,"
        "hrp_lab.theory.truncation_sweep;"
        "print(*{'peft', 'transformers', 'matplotlib', 'hrp.adapters.layers'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


ROOT = Path(__file__).resolve().parents[3]


def test_every_statement_checked_has_its_section_and_every_section_its_check():
    headings = re.findall(r"^### (\w+) \(", (ROOT / "docs/theory.md").read_text(), re.MULTILINE)
    record = json.loads((ROOT / "experiments/results/theory-check.json").read_text())
    assert set(headings) == {row["statement"] for row in record["table"]}
    assert all(row["holds"] for row in record["table"])


def test_the_documents_figure_1_table_is_the_recorded_one():
    text = (ROOT / "docs/theory.md").read_text()
    record = json.loads((ROOT / "experiments/results/theory-figure1.json").read_text())
    for row in record["table"]:
        assert f"| {row['final_loss']:.4f} " in text
        if row["time"] is not None:
            assert f"{row['time']:.3f}" in text
            assert f"{row['time_with_preheating']:.3f} |" in text
