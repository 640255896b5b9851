"""Says in sentences what a comparison's table says, and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from hrp_lab.bench.comparisons import Analysis, shown_arm, superseded

_NAMED = 16  # arms spelt out in a sentence
_FEW = 4  # variants of an arm that are spelt out; more of them are counted
_VERDICTS = {
    "better": "significantly better than {}",
    "worse": "significantly worse than {}",
    "no significant difference": "no significant difference to {}",
    "incomplete": "seeds are missing, no verdict",
}


def sentences(analysis: Analysis) -> Iterator[str]:
    """Yield the arms by verdict, and what is missing before a verdict means much."""
    ahead = {
        arm: rate
        for arm, best in analysis.best.items()
        if (rate := best.overtaken_by(analysis.minimise)) is not None
    }
    if (rate := ahead.pop(analysis.control, None)) is not None:
        yield (
            f"NO VERDICTS: the best learning rate of {analysis.control}, the control, is not "
            f"settled: {rate:g} does better on the seeds that it has; run it on all."
        )
    for verdict, words in _VERDICTS.items():
        if arms := [other.arm for other in analysis.comparisons if other.verdict == verdict]:
            yield f"{_some(analysis, arms)}: {words.format(analysis.control)}."
    if not analysis.comparisons:
        yield f"No comparison: {analysis.control} or all others have no results here."
    if ahead:
        yield (
            f"{_some(analysis, list(ahead))}: learning rate not settled, no verdict; another rate "
            "does better on fewer seeds: run it on all."
        )
    yield from _sweeps(analysis)
    yield from _old_meanings(analysis)


def _sweeps(analysis: Analysis) -> Iterator[str]:
    bests = analysis.best
    if edges := [arm for arm, best in bests.items() if best.on_edge and len(best.grid) > 1]:
        yield f"{_some(analysis, edges)}: best at an end of the sweep; it should be widened."
    if unswept := [arm for arm, best in bests.items() if len(best.grid) == 1]:
        named = "all arms" if len(unswept) == len(bests) else _some(analysis, unswept)
        yield f"{named}: one learning rate only, not swept; nothing is said of their best."


def _old_meanings(analysis: Analysis) -> Iterator[str]:
    firsts = {arm: analysis.records_of(arm)[0] for arm in analysis.best}
    old = [arm for arm, record in firsts.items() if superseded(record)]
    if old:
        yield (
            f"{_some(analysis, old)}: superseded, the arm of that name does otherwise today. Here "
            "the preheated update was cut by the plain SVD, nothing else was kept, and DoRA was "
            "preheated as LoRA."
        )


def _some(analysis: Analysis, labels: Sequence[str]) -> str:
    """Join the names; an arm of many variants is named once, with their number."""
    arms = {label: shown_arm(analysis.records_of(label)[0]) for label in analysis.best}
    variants, named = Counter(arms.values()), Counter(arms[label] for label in labels)
    names = [
        label
        if variants[arms[label]] <= _FEW
        else f"{arms[label]} ({named[arms[label]]} of {variants[arms[label]]} variants)"
        for label in labels
    ]
    names = list(dict.fromkeys(names))
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
