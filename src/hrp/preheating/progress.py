"""Follows preheating step by step, and judges what it has come to."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainingArguments

from hrp.adapters.layers import LoraModule
from hrp.adapters.moments import Moments
from hrp.config import HRPConfig
from hrp.errors import NonFiniteLossError, PreheatingError
from hrp.preheating.stopping import SubspaceStopping
from hrp.spectra.spectrum import Spectrum

_FIRST_STEPS = 5
_IGNORED = -100
_ENDS = 0.1  # share of the steps that are averaged at either end
_FEW = 10  # steps under which the two ends say nothing
_DESTROYED_LOSS = 2.0  # times the loss at the beginning
_DESTROYED_UPDATE = 1.0  # singular value over the norm of the base weight


class Progress(TrainerCallback):
    """Follows one preheating, by its methods or as a callback of a trainer.

    Args:
        config: its number of steps is known, or it is "auto".
        modules: of the temporary adapter, whose moments are observed over the last
            ``config.statistics_steps`` steps; with "auto", where the last one is not known, over
            the last ones before each look at the subspaces.
        targets: of the real adapter.
    """

    def __init__(
        self,
        config: HRPConfig,
        modules: dict[str, LoraModule],
        targets: Mapping[str, LoraModule],
    ) -> None:
        self.losses: list[float] = []
        self.moments = Moments(modules)
        self.stopping: SubspaceStopping | None = None
        if config.preheat_steps == "auto":
            ranks = {name: module.useful_rank for name, module in targets.items()}
            self.stopping = SubspaceStopping(config, modules, ranks)
        # This says of each batch since the last step whether it had no label.
        self._empty: list[Tensor | bool] = []
        self._waiting = 0  # steps without labels before the first with some
        self._config = config
        self._bar: tqdm | None = None

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Observe, within, what training does.

        Raises:
            PreheatingError: it has ended early, or no batch had a label.
        """
        try:
            with self.moments.hooked():
                yield
        finally:
            if self._bar is not None:
                self._bar.close()
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

    def passed_over(self, loss: Tensor, batch: Any) -> Tensor:
        """Return ``loss``, or zero where it is NaN for want of labels, as HF's Trainer does.

        It waits for no device.
        """
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            self._empty.append(False)
            return loss
        counted = labels[..., 1:] if labels.dim() > 1 else labels  # the first one is not predicted
        empty = (counted == _IGNORED).all().to(loss.device) & loss.isnan().all()
        self._empty.append(empty)
        return torch.where(empty, torch.zeros_like(loss), loss)

    def record(self, loss: float, step: int) -> None:
        """Take the loss of ``step``; raises `NonFiniteLossError` unless it is finite.

        A step whose batches had no labels counts with the loss of the one before.
        """
        empty, self._empty = self._empty, []
        if loss == 0 and empty and all(map(bool, empty)):
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

    @property
    def observing(self) -> bool:
        """Return whether hooks observe this step, so that it must run, and not be replayed."""
        return self.moments.observing

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        """Open the bar; raises ``ValueError`` where the optimizer has not the rate asked for."""
        asked, groups = self._config.learning_rate, getattr(optimizer, "param_groups", None)
        # A trainer's own schedule may begin at 0; `initial_lr` is the rate that it scales.
        rates = sorted({float(group.get("initial_lr", group["lr"])) for group in groups or ()})
        if asked and rates and not any(math.isclose(rate, asked) for rate in rates):
            raise ValueError(
                f"`learning_rate` of the HRPConfig must be the optimizer's, got {asked:g} where "
                f"the trainer's own optimizer has {rates}; set it there and leave `learning_rate` "
                "None"
            )
        # What was trained before an interruption is in the checkpoint's history.
        done = [float(entry["loss"]) for entry in state.log_history if _is_step(entry)]
        self.start(done, hidden=args.disable_tqdm or not state.is_world_process_zero)

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Say which step begins."""
        self.begin_step(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Stop the trainer once the subspaces have settled."""
        if self.may_stop(state.global_step):
            control.should_training_stop = True

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **_: Any
    ) -> None:
        """Take the loss of a step."""
        if _is_step(logs or {}):
            self.record(float(logs["loss"]), state.global_step)


def _is_step(logs: dict[str, Any]) -> bool:
    """Return whether a training step logged ``logs``; trainers may log another ``loss`` too."""
    return "loss" in logs and "learning_rate" in logs


def check_outcome(
    losses: list[float], spectrum: Spectrum, modules: Mapping[str, LoraModule], rate: float
) -> None:
    """Refuse a preheating that has plainly ruined the model, and warn of one that made it worse.

    It is ruined where the loss at the end is not below that at the beginning and the updates are
    larger than the weights that they change, or where the loss has doubled.

    Raises:
        PreheatingError: the model was ruined.

    Warns:
        UserWarning: the mean loss at the end is above that at the beginning.
    """
    if len(losses) < _FEW:
        return
    width = max(1, round(_ENDS * len(losses)))
    first, last = mean(losses[:width]), mean(losses[-width:])
    if last < first:
        return
    said = f"the loss was {first:.4g} at the beginning of preheating and {last:.4g} at its end"
    norms = {name: modules[name].base_norm() for name in spectrum}
    sizes = [float(spectrum[name].S[0]) / norm for name, norm in norms.items() if norm]
    remedy = f"lower `learning_rate` of the HRPConfig (it was {rate:g})"
    destroyed = bool(sizes) and median(sizes) > _DESTROYED_UPDATE
    if destroyed or last > _DESTROYED_LOSS * first:
        raise PreheatingError(f"{said}, so that the model is ruined; {remedy}")
    warnings.warn(f"{said}; {remedy}, or preheat longer", stacklevel=3)
