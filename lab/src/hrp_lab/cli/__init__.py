"""Runs the lab's command line: ``hrp-lab bench`` and ``hrp-lab theory``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hrp.cli import run_command

# Each module is imported only when its command runs.
COMMANDS: dict[str, tuple[str, str]] = {
    "theory": ("hrp_lab.cli.theory_commands", "check the theorems and redraw Figure 1"),
    "bench": ("hrp_lab.cli.bench_commands", "compare starts: rates swept, seeds, costs charged"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (2 for an unknown command)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_command("hrp-lab", "The lab of HRP: its claims, to rerun", COMMANDS, arguments)
