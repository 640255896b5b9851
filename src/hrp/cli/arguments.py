"""Adds the flags of `hrp sft`, `preheat` and `finetune` to TRL's, and parses them all."""

# ruff: noqa: RUF009  # `HfArg` makes a field, as `dataclasses.field` does

from __future__ import annotations

import argparse
import difflib
import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch
from transformers.hf_argparser import HfArg
from trl import ModelConfig, TrlParser, get_peft_config

from hrp.adapters.bfloat16 import has_native_bfloat16
from hrp.cli.failures import UsageError
from hrp.cli.help_page import Help, short_help
from hrp.cli.outputs import say
from hrp.cli.yaml_files import read_yaml
from hrp.config import Direction, HRPConfig, TrainFactors, Truncation
from hrp.validation import check_integer, check_positive, check_type, has_type

_PATHS = {"dataset_path", "dataset_name", "model_name_or_path", "spectrum", "chat_template_path"}
# `trl sft` passes these on to Accelerate's launcher.
_LAUNCHER = {
    *("accelerate_config", "config_file", "num_processes", "num_machines", "machine_rank"),
    *("main_process_ip", "main_process_port", "gpu_ids", "multi_gpu", "mixed_precision"),
    *("use_deepspeed", "deepspeed_config_file", "zero_stage", "use_fsdp", "num_cpu_threads"),
}


@dataclass
class HRPArguments:
    """Holds HRP's settings; see `hrp.HRPConfig`."""

    preheat_rank: int = HfArg(default=128, help="Rank R of the temporary LoRA.")
    preheat_steps: str | None = HfArg(
        default=None,
        help="Steps K of preheating; a share of fine-tuning's steps, by default 0.2, or 0.05 for "
        "classifiers; or 'auto': until its directions settle.",
    )
    preheat_learning_rate: float | None = HfArg(
        default=None,
        help="Learning rate of preheating; if not given, --learning_rate times "
        "sqrt(lora_r / preheat_rank).",
    )
    preheat_seed: int | None = HfArg(default=None, help="Seed of preheating; --seed if not given.")
    preheat_warmup_share: float = HfArg(
        default=HRPConfig.warmup_share,
        help="Share of preheating's steps over which its learning rate rises.",
    )
    direction: Direction = HfArg(
        default=HRPConfig.direction,
        help="Start lora_A (A), lora_B (B) or both (AB) from what preheating found.",
    )
    scale: float = HfArg(default=1.0, help="Norm of each direction; 1 with AB.")
    truncation: Truncation = HfArg(
        default=HRPConfig.truncation,
        help="How the preheated update is cut to --lora_r: in the metric of the loss, or by SVD.",
    )
    statistics_steps: int = HfArg(
        default=HRPConfig.statistics_steps,
        help="Last steps of preheating over which that metric is observed.",
    )
    keep: bool = HfArg(
        default=HRPConfig.keep,
        help="With AB: keep what preheating trained beside the factors (heads, DoRA magnitudes, "
        "biases, token rows).",
    )
    train_factors: TrainFactors = HfArg(default="both", help="Factors trained in preheating.")
    max_preheat_steps: int = HfArg(default=200, help="With 'auto': most steps of preheating.")
    subspace_tolerance: float = HfArg(
        default=0.05, help="With 'auto': settled means turning by less than this (0 to 1)."
    )
    subspace_window: int = HfArg(
        default=10, help="With 'auto': steps between two looks at the directions."
    )
    preheat_save_steps: int = HfArg(default=10, help="Steps between two checkpoints of preheating.")
    spectrum: str | None = HfArg(default=None, help="Folder from `hrp preheat`; skips preheating.")

    def hrp_config(self, seed: int) -> HRPConfig:
        """Return the settings as the core takes them; raise ``ValueError`` on one out of range."""
        check_integer("preheat_save_steps", self.preheat_save_steps, minimum=1)
        if self.preheat_seed is not None:
            check_integer("preheat_seed", self.preheat_seed, minimum=0)
        if self.preheat_learning_rate is not None:
            check_positive("preheat_learning_rate", self.preheat_learning_rate)
        same = {field.name for field in fields(HRPConfig)} & vars(self).keys()
        settings = {name: getattr(self, name) for name in same} | {
            "preheat_steps": _steps(self.preheat_steps),
            "warmup_share": self.preheat_warmup_share,
            "learning_rate": self.preheat_learning_rate,
            "seed": seed if self.preheat_seed is None else self.preheat_seed,
        }
        return HRPConfig(**settings)


def _steps(value: str | float | None) -> Any:
    """Turn a flag into a number where it is one; HRPConfig refuses any text but "auto"."""
    for number in (int, float):
        with suppress(ValueError):
            return number(str(value))
    return value


@dataclass
class DataArguments:
    """Names local files, and files whose columns TRL does not know."""

    dataset_path: str | None = HfArg(
        default=None,
        help="Local JSON, JSONL, CSV or Parquet file, or folder, instead of --dataset_name.",
    )
    prompt_template: str | None = HfArg(
        default=None, help=r"Makes the prompt from other columns: 'Question: {question}\nAnswer:'."
    )
    completion_template: str | None = HfArg(
        default=None, help="Makes the completion likewise: ' {answer}'."
    )


@dataclass
class OutputArguments:
    """Says what to do with an output folder that has something in it."""

    overwrite: bool = HfArg(
        default=False, help="Throw away what an earlier run left in --output_dir."
    )
    resume: bool = HfArg(default=False, help="Go on with the interrupted run in --output_dir.")


@dataclass
class LoraModelConfig(ModelConfig):
    """Holds TRL's flags of the base model and its LoRA, and one that TRL lacks."""

    lora_exclude_modules: list[str] | None = HfArg(
        default=None, help="Modules that get no LoRA, though --lora_target_modules covers them."
    )

    def lora_config(self) -> Any:
        """Return PEFT's config of the LoRA that the flags describe."""
        config = get_peft_config(self)
        if config is not None:
            config.exclude_modules = self.lora_exclude_modules
        return config


class _Parser(TrlParser):
    """Parses as TRL does, but raises instead of printing two hundred flags."""

    in_float32 = False

    def error(self, message: str) -> Any:
        """Raise what is wrong with the flags, for `hrp.cli.failures` to tell."""
        raise UsageError(message)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse, refuse unknown flags, and settle the precision where nobody asked for one."""
        flags, rest = super().parse_known_args(*args, **kwargs)
        if rest:
            unknown = [text for text in rest if text.startswith("--")] or rest
            raise UsageError(_unknown(unknown[0], self))
        # TRL's `--bf16` is None where it is not given, and then true.
        if getattr(flags, "bf16", False) is None and not flags.fp16:
            flags.use_cpu = flags.use_cpu or not torch.accelerator.is_available()
            if flags.use_cpu and not has_native_bfloat16():
                flags.bf16, self.in_float32 = False, True
        return flags, rest

    def set_defaults_with_config(self, **settings: Any) -> list[str]:
        """Take the values of a config file; refuse a key that is no flag, and another type."""
        hints = [get_type_hints(group).items() for group in self.dataclass_types]
        kinds = dict(itertools.chain.from_iterable(hints))
        for name in kinds.keys() & settings.keys():
            settings[name] = _typed(name, settings[name], kinds[name])
        rest = super().set_defaults_with_config(**settings)
        if rest:
            raise UsageError(_unknown(rest[0], self, "key in the config file"))
        return []


def _typed(name: str, value: Any, kind: Any) -> Any:
    """Return a config file's value as the flag takes it; raises ``UsageError`` on another type.

    As on the command line, a number is as good as text, and one text as a list of it.
    """
    if isinstance(value, str) and has_type([value], kind):
        return value
    texts = has_type("", kind) and not has_type({}, kind)
    if texts and type(value) in (int, float) and not has_type(value, kind):
        return str(value)
    try:
        check_type(name, value, kind, spelled=True)
    except ValueError as error:
        raise UsageError(f"`--config`: {error}; mend the file, or leave the key out") from error
    return value


class _ShortHelp(argparse.Action):
    """Prints the flags that people use, and stops; ``--help-all`` prints every flag."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        print(short_help(parser), end="")
        parser.exit()


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
        formatter_class=Help,
        usage=f"hrp {command} [--config FILE.yaml] [--flag value ...]",
        add_help=False,
    )
    hidden = {"dest": argparse.SUPPRESS}
    parser.add_argument("-h", "--help", action=_ShortHelp, nargs=0, help="show few flags", **hidden)
    parser.add_argument("--help-all", action="help", help="show every flag", **hidden)
    parser.add_argument("--config", help="YAML file of flags", **hidden)  # TRL reads it
    arguments = [part for text in argv for part in _split_config(text)]
    for flag, path in itertools.pairwise(arguments):
        if flag == "--config":
            _check_config(Path(path))
    try:
        parsed = parser.parse_args_and_config(arguments)
    except UsageError:
        raise
    except (TypeError, ValueError) as error:  # HF's and TRL's own conversions of what was given
        if isinstance(error, TypeError) and "unexpected keyword argument" not in str(error):
            raise
        raise UsageError(f"the flags, or the config file, cannot be used: {error}") from error
    if parser.in_float32:
        say("this CPU cannot compute in bfloat16: training in float32 (--bf16 true overrides)")
    for group in parsed:
        for name in _PATHS & set(vars(group)):
            if isinstance(path := getattr(group, name), str):
                setattr(group, name, os.path.expanduser(path))  # as a shell does for flags
    return tuple(parsed)


def _check_config(path: Path) -> None:
    """Raise ``UsageError`` on a file that is no YAML mapping of flags, or too large."""
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise UsageError(f"`--config`: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"`--config` '{path}' must hold a mapping, got {type(content).__name__}")
    if odd := [key for key in content if not isinstance(key, str)]:
        raise UsageError(f"`--config` '{path}' must have names of flags as keys, got {odd[0]!r}")


def _split_config(text: str) -> list[str]:
    """Split ``--config=FILE`` in two words, as TRL looks for it."""
    return text.split("=", 1) if text.startswith("--config=") else [text]


def _unknown(flag: str, parser: argparse.ArgumentParser, kind: str = "flag") -> str:
    if not flag.startswith("--"):
        return f"unexpected argument {flag!r}; every value follows a --flag"
    name = flag.split("=")[0][2:].replace("-", "_")
    if name in _LAUNCHER:
        passed = "config_file" if name == "accelerate_config" else name
        return (
            f"`--{name}` is a flag of the launcher: accelerate launch --{passed} ... "
            f"-m {parser.prog} ..."
        )
    known = [option[2:] for action in parser._actions for option in action.option_strings]
    near = difflib.get_close_matches(name, known, n=1)
    dashes = "--" if kind == "flag" else ""
    hint = (
        f"did you mean {dashes}{near[0]}?" if near else f"{parser.prog} --help-all lists the flags"
    )
    return f"unknown {kind} {flag if dashes else name!r}; {hint}"
