"""Tells failures that a user can mend in one line on stderr, with exit status 2."""

from __future__ import annotations

import errno
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
# What torch.save says, and no more, where the disk is full or a file may not grow.
_TORCH_CANNOT_WRITE = ("iostream error", "inline_container", "PytorchStreamWriter")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDY = "; make room on the disk and run the command again"


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
        return _told(command, str(error) + (_REMEDY if _is_full(error) else ""))
    except RuntimeError as error:
        if not any(words in str(error) for words in _TORCH_CANNOT_WRITE):
            raise
        return _told(command, f"a checkpoint could not be written ({error}){_REMEDY}")


def _is_full(error: Exception) -> bool:
    if isinstance(error, SafetensorError):
        return "I/O error" in str(error)
    return isinstance(error, OSError) and error.errno in _FULL


def _told(command: str, message: str) -> int:
    print(f"hrp {command}: {' '.join(message.split())}", file=sys.stderr)  # libraries fold lines
    return 2
