"""What a comparison's table says, in sentences, and no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hrp.bench.views import Analysis

_NAMED = 16  # arms spelt out in a sentence
_VERDICTS = {
    "better": "significantly better than {}",
    "worse": "significantly worse than {}",
    "no significant difference": "no significant difference to {}",
    "incomplete": "seeds are missing, no verdict",
}


def sentences(analysis: Analysis) -> Iterator[str]:
    """Arms by verdict, and what is missing before a verdict means much."""
    for verdict, words in _VERDICTS.items():
        if arms := [one.arm for one in analysis.comparisons if one.verdict == verdict]:
            yield f"{_some(arms)}: {words.format(analysis.control)}."
    if not analysis.comparisons:
        yield f"No comparison: {analysis.control} or all others have no results here."
    best = analysis.best.values()
    if edges := [one.arm for one in best if one.on_edge and len(one.grid) > 1]:
        yield f"{_some(edges)}: best at an end of the sweep; it should be widened."
    if ahead := [one.arm for one in best if one.is_overtaken(analysis.minimise)]:
        yield f"{_some(ahead)}: another learning rate does better on fewer seeds; run it on all."
    if unswept := [one.arm for one in best if len(one.grid) == 1]:
        named = "all arms" if len(unswept) == len(best) else _some(unswept)
        yield f"{named}: one learning rate only, not swept; nothing is said of their best."


def _some(arms: Sequence[str]) -> str:
    more = len(arms) - _NAMED
    return ", ".join(arms[:_NAMED]) + (f" and {more} more" if more > 0 else "")
