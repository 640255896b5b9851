"""The lowest versions that pyproject.toml allows run the library's tests and its commands."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from helpers.commands import questions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {"core": (), "cli": ("cli",)}
FOR_TESTS = ("beartype", "hypothesis", "pytest", "pytest-timeout")
CORE_TESTS = ("spectra", "adapters", "preheating", "test_initialization.py")
NEEDS_TRL = "tests/library/preheating/test_built_trainer.py"
TORCH = "torch"  # constraints.txt says which: older ones have no wheel for a CPU on the index


def floors(*extras: str) -> dict[str, str]:
    """Map each package that HRP asks for to the lowest version that it may have."""
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    lowest = {}
    for package in map(Requirement, texts):
        (bound,) = package.specifier
        assert bound.operator == ">=", f"{package} has no floor"
        lowest[package.name] = bound.version  # an extra's, where it asks for more
    return lowest


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Run a command without this checkout's sources on the path."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module", params=EXTRAS)
def python(request, tmp_path_factory) -> tuple[str, Path]:
    """Make an environment of the lowest versions; return its name and its interpreter."""
    folder = tmp_path_factory.mktemp(request.param)
    asked = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    if subprocess.run([*asked, "filelock==3.12"], capture_output=True, check=False).returncode:
        pytest.skip("no package index")
    lowest = floors(*EXTRAS[request.param])
    pinned = [TORCH, *(f"{name}=={lowest[name]}" for name in lowest if name != TORCH)]
    run(sys.executable, "-m", "venv", folder / "venv")
    interpreter = folder / "venv" / "bin" / "python"
    pip = (interpreter, "-m", "pip", "install", "--quiet")
    run(*pip, "-c", ROOT / "constraints.txt", *pinned, *FOR_TESTS)
    run(*pip, "--no-deps", ROOT)
    return request.param, interpreter


def test_the_floors_are_those_that_other_trainers_can_meet():
    """LLaMA-Factory 0.9.5 has PEFT 0.18 at most, axolotl 0.19 has 0.20, ms-swift 4.6 below 0.21."""
    assert floors()["peft"] == "0.18"
    assert "trl" not in floors()


def test_an_extra_s_floor_is_the_one_that_counts():
    assert (floors()["numpy"], floors("cli")["numpy"]) == ("1.26", "2.0")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_lowest_versions_run_what_users_run(python, tmp_path):
    name, interpreter = python
    if name == "core":
        paths = [f"tests/library/{path}" for path in CORE_TESTS]
        # PEFT 0.18 looks for the base's config when it saves, and the tests' models have no folder;
        # transformers 5.0 says so where a file system's times are coarse.
        ignored = ("Could not find a config file", "mtime may not be reliable")
        quiet = [f"-Wignore:{text}" for text in ignored]
        run(
            interpreter,
            "-m",
            "pytest",
            "-pno:cacheprovider",
            *quiet,
            f"--ignore={NEEDS_TRL}",
            *paths,
        )
        return
    model = ROOT / "src" / "hrp" / "demo" / "base"
    flags = ["--model_name_or_path", model, "--dataset_path", questions(tmp_path), "--use_cpu"]
    flags += ["--prompt_template", "{question}", "--completion_template", "{answer}"]
    flags += ["--preheat_rank", "8", "--preheat_steps", "2", "--max_steps", "2", "--lora_r", "4"]
    flags += ["--learning_rate", "1e-3", "--bf16", "false", "--report_to", "none"]
    hrp = (interpreter, "-m", "hrp")
    run(*hrp, "sft", *flags, "--output_dir", tmp_path / "adapter", folder=tmp_path)
    run(*hrp, "preheat", *flags, "--output_dir", tmp_path / "spectrum", folder=tmp_path)
    start = ("--lora_r", "2", "--output_dir", tmp_path / "start")
    run(*hrp, "init", "--spectrum", tmp_path / "spectrum", *start, folder=tmp_path)
    run(*hrp, "inspect", tmp_path / "spectrum", "--out", tmp_path / "figures", folder=tmp_path)
    for folder in ("adapter", "start"):
        assert (tmp_path / folder / "adapter_model.safetensors").is_file()
