"""Writes what the demo prints after its runs: a table, and how to read it."""

from __future__ import annotations

import math
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
    default, best = runs[0].arm, best_arm(runs)
    difference = _loss(best, runs) - _loss(default, runs)
    if difference < 0:
        said = f"{best} is the best HRP start, {-difference:.4f} below {default}"
    else:
        said = f"no HRP start wins; the best, {best}, is {difference:.4f} above {default}"
    lines = [f"Reading: {said} (lower on {_wins(best, runs)})."]
    if best != OURS and OURS in _arms(runs):
        lines.append(
            f"{OURS}, the default direction, is {_loss(OURS, runs) - _loss(default, runs):+.4f} "
            f"against {default} (lower on {_wins(OURS, runs)})."
        )
    lines.append(_against(best, default, runs))
    caution = CAUTION.format(seeds=len(_of(best, runs)), steps=DemoConfig().steps)
    return "\n".join([*(textwrap.fill(line, 96) for line in lines), caution])


def best_arm(runs: Sequence[Run]) -> str:
    """Return the preheated arm of the lowest mean test loss, whose run is also the one saved."""
    preheated = _arms([run for run in runs if run.preheat_steps])
    return min(preheated, key=lambda arm: _loss(arm, runs))


def _against(best: str, default: str, runs: Sequence[Run]) -> str:
    """Say what goes against HRP: exact answers, preheated arms that lose, arms that beat it."""
    right, usual = (mean(run.exact for run in _of(arm, runs)) for arm in (best, default))
    # Chance is two standard errors of a difference of shares; all seeds share one set of problems.
    share = (right + usual) / 2
    chance = 2 * math.sqrt(2 * share * (1 - share) / DemoConfig().test_problems)
    said = f"Against it: exact answers are {right:.1%} with {best} and {usual:.1%} with {default}, "
    if abs(right - usual) <= chance:
        said += f"no evidence either way (within {chance:.1%} is chance)"
    else:
        said += "more, which speaks for it" if right > usual else "fewer"
    preheated = _arms([run for run in runs if run.preheat_steps])
    worse = [arm for arm in preheated if _loss(arm, runs) > _loss(default, runs)]
    if worse:
        said += f"; {' and '.join(worse)} {'end' if worse[1:] else 'ends'} above {default}"
    lower = [arm for arm in _arms(runs) if _loss(arm, runs) < _loss(best, runs)]
    if lower:
        said += f"; {' and '.join(lower)} {'reach' if lower[1:] else 'reaches'} a lower loss still"
    return f"{said}."


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
