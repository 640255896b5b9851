"""Writes what the demo prints after its runs: a table, and how to read it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import mean

from hrp.demo.settings import DemoConfig, Run

OURS = 'HRP "AB"'
"""Name of the arm whose start is the library's default."""

HEADER = (
    f"{'arm':<17}{'preheating':>11}{'fine-tuning':>12}{'learning':>10}{'test loss':>11}"
    f"{'spread':>8}{'against':>9}{'exact':>9}{'time':>7}\n"
    f"{'':<17}{'steps':>11}{'steps':>12}{'rate':>10}{'mean':>11}"
    f"{'':>8}{'default':>9}{'answers':>9}{'s/run':>7}"
)

CAUTION = """\
Mind that this is {seeds} seed(s) of one tiny model, at one learning rate an arm: the best of four
at {steps} steps in all, chosen over three other seeds on other problems (preheating's own settings
on one of them). It shows the procedure and its cost, which is charged in steps and in time; it
ranks nothing beyond this setting. Loss: nats a token of the answer, on problems not trained on."""


def table(runs: Sequence[Run]) -> str:
    """Write one row an arm, in the order of the runs; the first arm is the one compared with.

    ``spread`` is the largest minus the smallest test loss over the seeds; ``against default`` the
    difference of the mean test losses, both over the same seeds.
    """
    rows, default = [HEADER], _losses(runs)[runs[0].arm]
    for arm, losses in _losses(runs).items():
        own = [run for run in runs if run.arm == arm]
        rows.append(
            f"{arm:<17}{own[0].preheat_steps:>11}{own[0].steps:>12}{own[0].learning_rate:>10.0e}"
            f"{mean(losses):>11.4f}{max(losses) - min(losses):>8.4f}"
            f"{mean(losses) - mean(default):>+9.4f}"
            f"{_exact(arm, runs):>9.1%}{mean(run.seconds for run in own):>7.1f}"
        )
    return "\n".join(rows)


def reading(runs: Sequence[Run]) -> str:
    """Say what the numbers say, for HRP and against it; the first arm is PEFT's default start."""
    losses, default, best = _losses(runs), runs[0].arm, best_arm(runs)
    roles = {best: "the best HRP start"}
    if OURS in losses:
        roles.setdefault(OURS, "the default direction")
    lines = []
    for arm, role in roles.items():
        difference = mean(losses[arm]) - mean(losses[default])
        lower = sum(own < usual for own, usual in zip(losses[arm], losses[default], strict=True))
        side = "below" if difference < 0 else "above"
        lines.append(
            f"{arm}, {role}, is {abs(difference):.4f} {side} {default} in test loss (lower on "
            f"{lower} of {len(losses[arm])} seeds)."
        )
    right, usual = _exact(best, runs), _exact(default, runs)
    beside = [f"exact answers are {right:.1%} with {best} and {usual:.1%} with {default}"]
    if better := [arm for arm in losses if mean(losses[arm]) < mean(losses[best])]:
        beside.append(f"a lower loss still: {' and '.join(better)}")
    lines.append(f"Beside it: {'; '.join(beside)}.")
    lines[0] = f"Reading: {lines[0]}"
    caution = CAUTION.format(seeds=len(losses[best]), steps=DemoConfig().steps)
    return "\n".join([*(textwrap.fill(line, 96) for line in lines), caution])


def best_arm(runs: Sequence[Run]) -> str:
    """Return the preheated arm of the lowest mean test loss, whose run is also the one saved."""
    preheated = _losses([run for run in runs if run.preheat_steps])
    return min(preheated, key=lambda arm: mean(preheated[arm]))


def _losses(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Return the test losses of each arm, by seed, in the order of the runs."""
    losses: dict[str, list[float]] = {}
    for run in runs:
        losses.setdefault(run.arm, []).append(run.test_loss)
    return losses


def _exact(arm: str, runs: Sequence[Run]) -> float:
    return mean(run.exact for run in runs if run.arm == arm)
