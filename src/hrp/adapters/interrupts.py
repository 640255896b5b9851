"""Holds Ctrl-C back while a model is being put back as it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Gate:
    """Handles SIGINT: passes it on to the handler before ours while it may.

    Passing one on closes the gate, so that the next, while that one is being handled, waits.
    """

    def __init__(self, before: Callable[[int, Any], Any]) -> None:
        self.before = before
        self.open = False
        self.waiting = False

    def __call__(self, number: int, frame: Any) -> None:
        if not self.open:
            self.waiting = True
            return
        self.open = False
        self.before(number, frame)

    def pass_on(self) -> None:
        """Handle now what has waited."""
        if self.waiting:
            self.waiting = False
            self.before(signal.SIGINT, None)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Make Ctrl-C wait until `interrupts_allowed`, or the exit.

    Contexts that put something back are entered within, and the work that may be interrupted is in
    `interrupts_allowed` within those: then a second Ctrl-C cannot cut the putting back short. It
    is for the main thread; no other one is ever interrupted, nor is a process that has handed
    SIGINT to something else than Python.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    gate = _Gate(before)
    signal.signal(signal.SIGINT, gate)
    try:
        yield
    except KeyboardInterrupt:
        gate.waiting = False  # it is on its way
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        gate.pass_on()


@contextmanager
def interrupts_allowed() -> Iterator[None]:
    """Let Ctrl-C interrupt at once again, inside `interrupts_held`."""
    gate = signal.getsignal(signal.SIGINT)
    if not isinstance(gate, _Gate) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        gate.open = True
        gate.pass_on()
        yield
    finally:
        gate.open = False
