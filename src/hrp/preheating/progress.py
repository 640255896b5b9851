"""Follows preheating step by step: losses, progress bar, stopping, what is observed."""

from __future__ import annotations

import math
from collections.abc import Iterable

from tqdm.auto import tqdm

from hrp.adapters.moments import Moments
from hrp.config import HRPConfig
from hrp.errors import NonFiniteLossError, PreheatingError
from hrp.preheating.empty_batches import EmptyBatches
from hrp.preheating.stopping import SubspaceStopping

_FIRST_STEPS = 5


class Progress:
    """Holds the state of one preheating that both ways to train it share.

    Args:
        config: its number of steps is known, or it is "auto".
        moments: observed over the last ``config.statistics_steps`` steps; with "auto", where the
            last one is not known, over the last ones before each look at the subspaces.
        stopping: tells when "auto" may stop; None otherwise.
    """

    def __init__(
        self, config: HRPConfig, moments: Moments, stopping: SubspaceStopping | None = None
    ) -> None:
        self.losses: list[float] = []
        self.empty_batches = EmptyBatches()
        self._waiting = 0  # steps without labels before the first with some
        self.moments = moments
        self.stopping = stopping
        self._config = config
        self._bar: tqdm | None = None

    def start(self, done: Iterable[float] = (), hidden: bool = False) -> None:
        """Open the bar, going on after the steps whose losses are ``done``."""
        self.losses = list(done)
        self._bar = tqdm(
            total=self._config.step_limit,
            initial=len(self.losses),
            desc="Preheating",
            disable=hidden,
            leave=False,
        )

    def begin_step(self, step: int) -> None:
        """Say that optimizer step ``step``, counted from 1, begins."""
        observed = self._config.statistics_steps
        length = self._config.step_limit
        if self.stopping is not None:
            length = self._config.subspace_window
            step = (step - 1) % length + 1
        self.moments.observing = step > length - observed
        if step == max(1, length - observed + 1):
            self.moments.clear()

    def record(self, loss: float, step: int) -> None:
        """Take the loss of ``step``; raises `NonFiniteLossError` unless it is finite.

        A step whose batches had no labels counts with the loss of the one before.
        """
        if self.empty_batches.since_last(loss):
            if not self.losses:
                self._waiting += 1
                return
            loss = self.losses[-1]
        self.losses += [loss] * (1 + self._waiting)
        self._waiting = 0
        if not math.isfinite(loss):
            raise NonFiniteLossError(
                f"the loss is {loss} at preheating step {step}; lower `learning_rate` of the "
                "HRPConfig, or look for an empty or overflowing batch there"
            )
        if self._bar is not None:
            self._bar.update()
            self._bar.set_postfix(loss=f"{loss:.4f}")

    def may_stop(self, step: int) -> bool:
        """Return whether preheating may stop after ``step``: its subspaces have settled.

        Raises:
            PreheatingError: the first steps are over, and no gradient has reached any module.
        """
        first = step == _FIRST_STEPS + self._config.warmup_steps and not self._waiting
        if first and not self.moments.any_trained():
            raise PreheatingError(
                f"no gradient has reached any module in {step} steps of preheating; look at the "
                "loss: does it depend on the adapted modules?"
            )
        return self.stopping is not None and self.stopping.update(step)

    def close(self) -> None:
        """Close the bar, also where training ended early."""
        if self._bar is not None:
            self._bar.close()

    def check_complete(self) -> None:
        """Raise `PreheatingError` unless all steps were taken, or the subspaces have settled."""
        settled = self.stopping is not None and self.stopping.settled
        if self._waiting:
            raise PreheatingError(
                f"no batch had a label other than -100 in {self._waiting} steps of preheating; "
                "look at the data, and at the longest length allowed"
            )
        if len(self.losses) < self._config.step_limit and not settled:
            raise PreheatingError(
                f"training ended after {len(self.losses)} of {self._config.step_limit} preheating "
                "steps; give more data or lower `preheat_steps`"
            )
