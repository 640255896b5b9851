"""Runs commands in this process, on the embedded base model and a few rows of data."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import torch

from hrp.demo import BASE
from hrp.spectra.spectrum import Spectrum

LORA = ["--lora_r", "4", "--lora_alpha", "8", "--lora_target_modules", "all-linear"]
TEMPLATES = ["--prompt_template", "Q: {question}\\nA: ", "--completion_template", "{answer}"]
QUICK = [
    *("--preheat_rank", "8", "--preheat_steps", "5", "--preheat_save_steps", "2"),
    *("--max_steps", "4", "--save_steps", "2", "--per_device_train_batch_size", "4"),
    *("--learning_rate", "1e-3", "--use_cpu", "--bf16", "false", "--report_to", "none"),
    *("--gradient_checkpointing", "false", "--disable_tqdm", "true"),
]


def call(command: str, *arguments: str | Path) -> int:
    """Run ``hrp command`` as the entry point does."""
    module = importlib.import_module(f"hrp.cli.{command}")
    return module.main([str(argument) for argument in arguments])


def questions(folder: Path, count: int = 40) -> Path:
    """A JSONL file with the columns question and answer."""
    path = folder / "rows.jsonl"
    rows = (
        {"question": f"what is {i} plus {i + 1}?", "answer": f"{i} plus {i + 1} is {2 * i + 1}."}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def training(data: Path, output: Path, *more: str | Path) -> list[str]:
    """Flags of a run on `questions` that takes about a second."""
    flags = ["--model_name_or_path", BASE, "--dataset_path", data, *TEMPLATES, *LORA, *QUICK]
    return [str(flag) for flag in [*flags, "--output_dir", output, *more]]


def assert_same_spectrum(one: Spectrum, two: Spectrum) -> None:
    """Bit for bit, losses included."""
    assert list(one) == list(two)
    assert one.provenance["losses"] == two.provenance["losses"]
    for name in one:
        for part in ("U", "S", "Vh"):
            assert torch.equal(getattr(one[name], part), getattr(two[name], part)), name
