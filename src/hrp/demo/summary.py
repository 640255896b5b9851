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
    rows = [HEADER]
    for arm in _arms(runs):
        own = _of(arm, runs)
        first, losses = own[0], [run.test_loss for run in own]
        against = mean(losses) - _loss(runs[0].arm, runs)
        rows.append(
            f"{arm:<17}{first.preheat_steps:>11}{first.steps:>12}{first.learning_rate:>10.0e}"
            f"{mean(losses):>11.4f}{max(losses) - min(losses):>8.4f}{against:>+9.4f}"
            f"{mean(run.exact for run in own):>9.1%}{mean(run.seconds for run in own):>7.1f}"
        )
    return "\n".join(rows)


def reading(runs: Sequence[Run]) -> str:
    """Say what the numbers say, for HRP and against it; the first arm is PEFT's default start."""
    arms, default, best = _arms(runs), runs[0].arm, best_arm(runs)
    losses = {arm: _loss(arm, runs) for arm in arms}
    difference = losses[best] - losses[default]
    if difference < 0:
        said = f"{best} is the best HRP start, {-difference:.4f} below {default}"
    else:
        said = f"no HRP start wins; the best, {best}, is {difference:.4f} above {default}"
    lines = [f"Reading: {said} (lower on {_wins(best, runs)})."]
    if best != OURS and OURS in arms:
        lines.append(
            f"{OURS}, the default direction, is {losses[OURS] - losses[default]:+.4f} against "
            f"{default} (lower on {_wins(OURS, runs)})."
        )
    worse = [arm for arm in _preheated(runs) if losses[arm] > losses[default]]
    lower = [arm for arm in arms if losses[arm] < losses[best]]
    right, usual = (mean(run.exact for run in _of(arm, runs)) for arm in (best, default))
    against = [f"exact answers are {right:.1%} with {best} and {usual:.1%} with {default}"]
    if worse:
        against.append(f"{' and '.join(worse)} {'end' if worse[1:] else 'ends'} above {default}")
    if lower:
        reach = "reach" if lower[1:] else "reaches"
        against.append(f"{' and '.join(lower)} {reach} a lower loss still")
    lines.append(f"Beside it: {'; '.join(against)}.")
    caution = CAUTION.format(seeds=len(_of(best, runs)), steps=DemoConfig().steps)
    return "\n".join([*(textwrap.fill(line, 96) for line in lines), caution])


def best_arm(runs: Sequence[Run]) -> str:
    """Return the preheated arm of the lowest mean test loss, whose run is also the one saved."""
    return min(_preheated(runs), key=lambda arm: _loss(arm, runs))


def _preheated(runs: Sequence[Run]) -> list[str]:
    return _arms([run for run in runs if run.preheat_steps])


def _wins(arm: str, runs: Sequence[Run]) -> str:
    pairs = list(zip(_of(arm, runs), _of(runs[0].arm, runs), strict=True))
    wins = sum(preheated.test_loss < usual.test_loss for preheated, usual in pairs)
    return f"{wins} of {len(pairs)} seeds"


def _arms(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.arm for run in runs))


def _of(arm: str, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.arm == arm]


def _loss(arm: str, runs: Sequence[Run]) -> float:
    return mean(run.test_loss for run in _of(arm, runs))
