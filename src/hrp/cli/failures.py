"""Tells failures that a user can mend in one line on stderr, with exit status 2."""

from __future__ import annotations

import ast
import dis
import errno
import linecache
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

import yaml
from safetensors import SafetensorError

from hrp.errors import PreheatingError


class UsageError(ValueError):
    """The command line, or what it names, cannot be used."""


# Anything else is a fault of ours and keeps its traceback. An ImportError names a package that a
# flag needs, such as bitsandbytes.
_EXPECTED = (ImportError, OSError, PreheatingError, SafetensorError, ValueError, yaml.YAMLError)
# These the interpreter raises too, where a program is wrong. Only those count that somebody wrote,
# or that compiled code of a library that reads the user's files has raised.
_AMBIGUOUS = (TypeError, ValueError)
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
        return _told(name, _message(error))


def _is_expected(error: Exception) -> bool:
    if _is_network(error) or _reader(error):
        return True
    if type(error) in _AMBIGUOUS:
        return _was_written(error)
    if isinstance(error, RuntimeError | IndexError):
        return bool(_remedy(error)) or isinstance(error, PreheatingError)
    return isinstance(error, _EXPECTED)


def _was_written(error: Exception) -> bool:
    """Return whether the error comes from a ``raise``, rather than from such as ``len(None)``."""
    trace = _last(error)
    return trace is not None and trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE


def _reader(error: Exception) -> str | None:
    """Return which of `_READERS` has the error's class, or the compiled code that raised it.

    Compiled code has no frame: what the innermost frame called then is looked up by its name.
    """
    trace, known = _last(error), [type(error)]
    if trace is not None and not _was_written(error):
        known += [one if isinstance(one, type) else type(one) for one in _called(trace)]
    roots = {str(one.__module__).partition(".")[0] for one in known}
    return next((name for name in _READERS if name in roots), None)


def _called(trace: TracebackType) -> list[Any]:
    """Return ``a`` and ``a.b`` where an error passed in ``a.b(...)``, however long ``a`` is."""
    frame = trace.tb_frame
    first, last, start, end = list(frame.f_code.co_positions())[trace.tb_lasti // 2]
    if first is None or last is None:
        return []
    path = frame.f_code.co_filename
    lines = [linecache.getline(path, number).encode() for number in range(first, last + 1)]
    lines[-1] = lines[-1][:end]
    lines[0] = lines[0][start:]
    with suppress(Exception):
        node: Any = ast.parse(b"(%b)" % b"".join(lines), mode="eval").body
        name, *attributes = ast.unparse(node.func).split(".")
        scopes = (frame.f_locals, frame.f_globals)
        values = [next(scope[name] for scope in scopes if name in scope)]
        for attribute in attributes:
            values.append(getattr(values[-1], attribute))
        return values[-2:]
    return []


def _last(error: Exception) -> TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _is_network(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _NETWORK


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
    if _is_network(error):
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


def _told(name: str, message: str) -> int:
    one_line = " ".join(message.split())  # libraries fold lines
    print(f"{name}: {printable(one_line)}", file=sys.stderr)
    return 2
