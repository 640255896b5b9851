"""Tells failures that a user can mend in one line on stderr, with exit status 2."""

from __future__ import annotations

import dis
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
_EXPECTED = (ImportError, OSError, PreheatingError, SafetensorError, ValueError, yaml.YAMLError)
_READERS = ("tokenizers", "pyarrow", "safetensors", "sentencepiece", "jinja2")
_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp")
# torch.save says no more than this where the disk is full or a file may not grow.
_TORCH_CANNOT_WRITE = ("iostream error", "inline_container", "PytorchStreamWriter")
_RAISE = dis.opmap["RAISE_VARARGS"]


def reported(command: str, job: Callable[[], int], program: str = "hrp") -> int:
    """Run ``job``; returns its exit status, 2 after an expected error, 130 after Ctrl-C."""
    name = f"{program} {command}"
    # PEFT and TRL use names that transformers has renamed; a user cannot mend that.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing` is deprecated", FutureWarning)
    try:
        return job()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if not _is_expected(error):
            raise
        one_line = " ".join(_message(error).split())  # libraries fold lines
        print(f"{name}: {printable(one_line)}", file=sys.stderr)
        return 2


def _is_expected(error: Exception) -> bool:
    if type(error) in (TypeError, ValueError):  # the interpreter's too, where a program is wrong
        expected = _raised_by(error)[1]
    else:
        expected = isinstance(error, _EXPECTED)
    return expected or bool(_remedy(error))


def _raised_by(error: Exception) -> tuple[str, bool]:
    """Return the module that raised it, and whether by ``raise``, not by such as ``len(None)``."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "", False
    frame = trace.tb_frame
    return frame.f_globals.get("__name__", ""), frame.f_code.co_code[trace.tb_lasti] == _RAISE


def _reader(error: Exception) -> str | None:
    """Return the library that could not read what the user gave it.

    The errors of `tokenizers`, which is compiled, are Python's own, raised in its caller's frame.
    """
    module, written = _raised_by(error)
    if not written and "tokeniz" in module:
        return "tokenizers"
    return _package_of(error) if _package_of(error) in _READERS else None


def _package_of(error: Exception) -> str:
    return type(error).__module__.partition(".")[0]


def _message(error: Exception) -> str:
    notes = getattr(error, "__notes__", [])
    prefix = "a checkpoint could not be written: " if _cannot_write(error) else ""
    return "; ".join([prefix + (str(error) or type(error).__name__), *notes, *_remedy(error)])


def _remedy(error: Exception) -> list[str]:
    """Return what the user can do about it, where the message does not say so itself."""
    text = str(error)
    number = getattr(error, "errno", None)
    broken = isinstance(error, SafetensorError) and "I/O error" in text
    if number == errno.EFBIG or (broken and "os error 27" in text):
        return ["raise the limit on the size of files (`ulimit -f`) and run the command again"]
    if number in (errno.ENOSPC, errno.EDQUOT) or broken or _cannot_write(error):
        return ["make room on the disk and run the command again"]
    if _package_of(error) in _NETWORK:
        return ["is the network there? HF_HUB_OFFLINE=1 uses what has been loaded before"]
    if reader := _reader(error):
        return [f"{reader} cannot read a file, or a row, that it was given; mend or replace it"]
    if isinstance(error, IndexError) and text == "index out of range in self":  # torch.embedding's
        return ["the data hold a token that the model does not have: was `input_ids` made for it?"]
    if "support bf16" in text:
        return ["pass --bf16 false"]
    if isinstance(error, RuntimeError) and "requires" in text and "install" in text:
        return ["or pass --report_to none"]
    if type(error).__name__ == "OutOfMemoryError":
        return ["lower --per_device_train_batch_size"]
    return []


def _cannot_write(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _TORCH_CANNOT_WRITE)


def printable(text: str) -> str:
    """Return text that a terminal only shows: control characters are spelt out.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
