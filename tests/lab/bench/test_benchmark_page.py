"""docs/benchmark.md: its experiment is one, and its arm runs, in workers too."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hrp_lab.bench.protocol import experiment_from, plan
from hrp_lab.bench.record_store import load_records
from hrp_lab.cli.bench_commands import _parser

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL).group(1)


def test_the_page_s_experiment_is_one():
    experiment = experiment_from(yaml.safe_load(block("yaml")))
    assert {run.arm for run in plan(experiment, {})} == {"lora", "hrp-ab", "pissa", "hrp-b", "full"}


def test_the_page_s_commands_are_ones():
    shells = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in shells.splitlines()]
    assert {words[2] for words in lines} == {"list", "run", "report", "export", "pack"}
    for words in lines:
        _parser().parse_args(words[2:])


@pytest.mark.slow
def test_the_page_s_own_arm_runs_in_two_workers(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(block("python"))
    text = (ROOT / "experiments" / "standin-wordproblems.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text) | {"arms": ["halved"], "seeds": [0, 1], "steps": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    subprocess.run(
        [sys.executable, script, "run", tmp_path / "mine.yaml", "--workers", "2"],
        check=True, timeout=240,
    )  # fmt: skip
    records = load_records(tmp_path / "results" / "standin-wordproblems")
    assert [(one.arm, one.status) for one in records] == [("halved", "ok")] * 2
