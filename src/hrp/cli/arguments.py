"""Adds the flags of `hrp sft`, `preheat` and `finetune` to TRL's, and parses them all."""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl import TrlParser

from hrp.cli.failures import UsageError
from hrp.cli.yaml_files import read_yaml
from hrp.config import HRPConfig
from hrp.validation import check_integer, check_positive

_PATHS = {"dataset_path", "dataset_name", "model_name_or_path", "spectrum", "chat_template_path"}


@dataclass
class HRPArguments:
    """HRP's settings; see `hrp.HRPConfig`."""

    preheat_rank: int = field(default=128, metadata={"help": "Rank R of the temporary LoRA."})
    preheat_steps: str | None = field(
        default=None,
        metadata={
            "help": "Steps K of preheating; a share of fine-tuning's steps, by default 0.2, or "
            "0.05 for classifiers; or 'auto': until its directions settle."
        },
    )
    preheat_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of preheating; if not given, --learning_rate times "
            "sqrt(lora_r / preheat_rank)."
        },
    )
    preheat_seed: int | None = field(
        default=None, metadata={"help": "Seed of preheating; --seed if not given."}
    )
    direction: str = field(
        default=HRPConfig.direction,
        metadata={"help": "Start lora_A (A), lora_B (B) or both (AB) from what preheating found."},
    )
    scale: float = field(default=1.0, metadata={"help": "Norm of each direction; 1 with AB."})
    train_factors: str = field(
        default="both", metadata={"help": "Factors trained in preheating: both, A or B."}
    )
    max_preheat_steps: int = field(
        default=200, metadata={"help": "With 'auto': most steps of preheating."}
    )
    subspace_tolerance: float = field(
        default=0.05,
        metadata={"help": "With 'auto': settled means turning by less than this (0 to 1)."},
    )
    subspace_window: int = field(
        default=10, metadata={"help": "With 'auto': steps between two looks at the directions."}
    )
    preheat_save_steps: int = field(
        default=10, metadata={"help": "Steps between two checkpoints of preheating."}
    )

    def hrp_config(self, seed: int) -> HRPConfig:
        """Settings as the core takes them; raises ``ValueError`` on a value out of range."""
        check_integer("preheat_save_steps", self.preheat_save_steps, minimum=1)
        if self.preheat_seed is not None:
            check_integer("preheat_seed", self.preheat_seed, minimum=0)
        if self.preheat_learning_rate is not None:
            check_positive("preheat_learning_rate", self.preheat_learning_rate)
        return HRPConfig(
            preheat_rank=self.preheat_rank,
            preheat_steps=_steps(self.preheat_steps),
            direction=self.direction,  # type: ignore[arg-type]  # HRPConfig checks it
            scale=self.scale,
            train_factors=self.train_factors,  # type: ignore[arg-type]  # likewise
            learning_rate=self.preheat_learning_rate,
            seed=seed if self.preheat_seed is None else self.preheat_seed,
            max_preheat_steps=self.max_preheat_steps,
            subspace_tolerance=self.subspace_tolerance,
            subspace_window=self.subspace_window,
        )


def _steps(value: str | float | None) -> Any:
    """Turn a flag into a number where it is one; HRPConfig refuses any text but "auto"."""
    for number in (int, float):
        with suppress(ValueError):
            return number(str(value))
    return value


@dataclass
class SpectrumArguments:
    """A start from an earlier preheating."""

    spectrum: str | None = field(
        default=None, metadata={"help": "Folder from `hrp preheat`; skips preheating."}
    )


@dataclass
class DataArguments:
    """Local files, and files whose columns TRL does not know."""

    dataset_path: str | None = field(
        default=None,
        metadata={
            "help": "Local JSON, JSONL, CSV or Parquet file, or folder, instead of --dataset_name."
        },
    )
    prompt_template: str | None = field(
        default=None,
        metadata={"help": r"Makes the prompt from other columns: 'Question: {question}\nAnswer:'."},
    )
    completion_template: str | None = field(
        default=None, metadata={"help": "Makes the completion likewise: ' {answer}'."}
    )


@dataclass
class OutputArguments:
    """What to do with an output folder that has something in it."""

    overwrite: bool = field(
        default=False, metadata={"help": "Throw away what an earlier run left in --output_dir."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on with the interrupted run in --output_dir."}
    )


class _Parser(TrlParser):
    """TRL's parser, which raises instead of printing its two hundred flags."""

    def error(self, message: str) -> Any:
        raise UsageError(message)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside the flags, and the example as it was written."""


def parse(
    command: str, description: str, example: str, types: Sequence[type], argv: Sequence[str]
) -> tuple[Any, ...]:
    """Parse flags and ``--config file.yaml`` (flags override) into one object a type.

    Raises:
        UsageError: an unknown flag (with the nearest known one), a value of the wrong type.
        OSError: the config file cannot be read.
    """
    parser = _Parser(
        types,
        prog=f"hrp {command}",
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=_Help,
        usage=f"hrp {command} [--config FILE.yaml] [--flag value ...]",
    )
    arguments = [part for text in argv for part in _split_config(text)]
    for flag, path in itertools.pairwise(arguments):
        if flag == "--config":
            check_config(Path(path))
    *parsed, from_config, from_flags = parser.parse_args_and_config(
        arguments, return_remaining_strings=True, separate_remaining_strings=True
    )
    unknown = [text for text in [*from_flags, *from_config] if text.startswith("--")]
    unknown += [text for text in from_flags if not text.startswith("--")]
    if unknown:
        raise UsageError(_unknown(unknown[0], parser))
    for group in parsed:
        for name in _PATHS & set(vars(group)):
            if isinstance(path := getattr(group, name), str):
                setattr(group, name, os.path.expanduser(path))  # as a shell does for flags
    return tuple(parsed)


def check_config(path: Path) -> None:
    """Raise ``UsageError`` on a file that is no YAML mapping, or too large; see `read_yaml`."""
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise UsageError(f"`--config`: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"`--config` '{path}' must hold a mapping, got {type(content).__name__}")


def _split_config(text: str) -> list[str]:
    """TRL looks for ``--config`` as a word of its own."""
    return text.split("=", 1) if text.startswith("--config=") else [text]


def _unknown(flag: str, parser: argparse.ArgumentParser) -> str:
    if not flag.startswith("--"):
        return f"unexpected argument {flag!r}; every value follows a --flag"
    known = [option for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(flag.split("=")[0], known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"{parser.prog} --help lists the flags"
    return f"unknown flag {flag!r}; {hint}"
