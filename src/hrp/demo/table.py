"""Writes what the demo prints after its runs: a table, and how to read it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from hrp.demo.settings import DemoConfig, Run

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
    rows = [_row(arm, runs) for arm in _arms(runs)]
    return "\n".join([HEADER, *rows])


def reading(runs: Sequence[Run]) -> str:
    """Say what the numbers say and what not; the first arm is PEFT's default start."""
    default = runs[0].arm
    preheated = _arms([run for run in runs if run.preheat_steps])
    best = min(preheated, key=lambda arm: _loss(arm, runs))
    pairs = list(zip(_of(best, runs), _of(default, runs), strict=True))
    wins = sum(own.test_loss < other.test_loss for own, other in pairs)
    difference = _loss(best, runs) - _loss(default, runs)
    if difference < 0:
        said = f"{best} is the best HRP start, {-difference:.4f} below {default}"
    else:
        said = f"no HRP start wins; the best, {best}, is {difference:.4f} above {default}"
    said += f" (lower on {wins} of {len(pairs)} seeds)"
    caution = CAUTION.format(seeds=len(pairs), steps=DemoConfig().steps)
    return f"Reading: {said}.\n{caution}"


def _arms(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.arm for run in runs))


def _of(arm: str, runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.arm == arm]


def _loss(arm: str, runs: Sequence[Run]) -> float:
    return mean(run.test_loss for run in _of(arm, runs))


def _spread(arm: str, runs: Sequence[Run]) -> float:
    losses = [run.test_loss for run in _of(arm, runs)]
    return max(losses) - min(losses)


def _row(arm: str, runs: Sequence[Run]) -> str:
    own = _of(arm, runs)
    first = own[0]
    against = _loss(arm, runs) - _loss(_arms(runs)[0], runs)
    return (
        f"{arm:<17}{first.preheat_steps:>11}{first.steps:>12}{first.learning_rate:>10.0e}"
        f"{_loss(arm, runs):>11.4f}{_spread(arm, runs):>8.4f}{against:>+9.4f}"
        f"{mean(run.exact for run in own):>9.1%}{mean(run.seconds for run in own):>7.1f}"
    )
