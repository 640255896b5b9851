"""The command line: one module a command, each with a one-line ``HELP`` and ``main(argv)``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from hrp.versions import own_version

# In the order in which a newcomer needs them; each module is imported only when its command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("hrp.cli.demo", "see HRP work on an embedded model, offline"),
    "sft": ("hrp.cli.sft", "fine-tune: `trl sft` with a preheated start"),
    "finetune": ("hrp.cli.finetune", "the same for encoder-decoders and classifiers"),
    "preheat": ("hrp.cli.preheat", "preheat only: write a spectrum folder"),
    "init": ("hrp.cli.init", "turn a spectrum and a rank into a PEFT adapter to train anywhere"),
    "inspect": ("hrp.cli.inspect", "look at a spectrum: ranks, energy, alignment, figures"),
    "report": ("hrp.cli.report", "one HTML page from records and spectra"),
    "bench": ("hrp.cli.bench", "compare starts: learning-rate sweeps, seeds, costs charged"),
    "theory": ("hrp.cli.theory", "check the theorems and redraw Figure 1"),
}

USAGE = "usage: hrp <command> [options]      (hrp <command> --help says more;  hrp --version)"


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {help_line}" for name, (_, help_line) in COMMANDS.items()]
    return "\n".join(["High-Rank Preheating for LoRA", "", USAGE, "", "commands:", *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for an unknown command)."""
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:  # `hrp inspect DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 1
    return status


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if arguments[0] == "--version":
        print(f"hrp {own_version()}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"hrp: unknown command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    command = importlib.import_module(COMMANDS[name][0])
    return int(command.main(rest))
