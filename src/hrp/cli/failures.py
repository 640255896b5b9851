"""Which failures a user can mend, and how they are told: one line on stderr, exit status 2."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import yaml
from safetensors import SafetensorError

from hrp.errors import PreheatingError


class UsageError(ValueError):
    """The command line, or what it names, cannot be used."""


# Anything else is a fault of ours and keeps its traceback. An ImportError names a package that a
# flag needs, such as bitsandbytes.
EXPECTED_ERRORS = (
    ImportError,
    OSError,
    PreheatingError,
    SafetensorError,
    TypeError,
    ValueError,
    yaml.YAMLError,
)


def reported(command: str, job: Callable[[], int]) -> int:
    """Run ``job``; returns its exit status, 2 after an expected error, 130 after Ctrl-C."""
    # PEFT and TRL use names that transformers renamed; nothing a user could mend.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing` is deprecated", FutureWarning)
    try:
        return job()
    except KeyboardInterrupt:
        print(f"\nhrp {command}: interrupted", file=sys.stderr)
        return 130
    except EXPECTED_ERRORS as error:
        print(f"hrp {command}: {error}", file=sys.stderr)
        return 2
