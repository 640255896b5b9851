"""Runs the command line: one module a command, each with ``main(argv)``."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from hrp.versions import own_version, too_old

Commands = Mapping[str, tuple[str, str]]
"""Name -> (module, one line of help); each module is imported only when its command runs."""

# In the order in which a newcomer needs them.
COMMANDS: Commands = {
    "demo": ("hrp.cli.demo", "see HRP work on an embedded model, offline"),
    "sft": ("hrp.cli.sft", "fine-tune: `trl sft` with a preheated start"),
    "finetune": ("hrp.cli.finetune", "the same for encoder-decoders and classifiers"),
    "preheat": ("hrp.cli.preheat", "preheat only: write a spectrum folder"),
    "init": ("hrp.cli.init", "turn a spectrum and a rank into a PEFT adapter to train anywhere"),
    "inspect": (
        "hrp.cli.inspect",
        "look at a spectrum: what each rank keeps, a recommended rank, figures",
    ),
    "report": ("hrp.cli.report", "one HTML page of what a run did"),
}

_MOVED = ("bench", "theory")
"""Commands of the lab, which is a distribution of its own."""

_ON_TRL = ("sft", "finetune", "preheat")
"""Commands that need the extra "cli"."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for an unknown command)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in _MOVED:
        moved = f"`hrp {name}` is `hrp-lab {name}` now; from a checkout: pip install ./lab"
        return _refused("hrp", moved)
    if name in COMMANDS and (old := too_old("cli") if name in _ON_TRL else too_old()):
        return _refused(f"hrp {name}", old[0])
    try:
        return run_command("hrp", "High-Rank Preheating for LoRA", COMMANDS, arguments)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "hrp":
            raise
        absent = f"the package {error.name!r} is not installed; pip install 'hrp-lora[cli]'"
        return _refused(f"hrp {name}", absent)


def run_command(program: str, title: str, commands: Commands, arguments: list[str]) -> int:
    """Run one of ``commands``; returns the exit status (2 for an unknown command)."""
    status, name = 0, arguments[0] if arguments else "--help"
    try:
        if name in ("-h", "--help"):
            print(_overview(program, title, commands))
        elif name == "--version":
            print(f"{program} {own_version()}")
        elif name in commands:
            status = int(importlib.import_module(commands[name][0]).main(arguments[1:]))
        else:
            near = difflib.get_close_matches(name, commands, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            known = ", ".join(commands)
            status = _refused(program, f"unknown command {name!r}; choose from {known}{hint}")
        sys.stdout.flush()
    except KeyboardInterrupt:  # while it starts; a command that is at work says so itself
        print(f"\n{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hrp inspect DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    return status


def _refused(program: str, message: str) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return 2


def _overview(program: str, title: str, commands: Commands) -> str:
    width = max(map(len, commands))
    usage = (
        f"usage: {program} <command> [options]      "
        f"({program} <command> --help says more;  {program} --version)"
    )
    rows = [f"  {name:<{width}}  {help_line}" for name, (_, help_line) in commands.items()]
    return "\n".join([title, "", usage, "", "commands:", *rows])
