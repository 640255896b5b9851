"""README's table of the starts, and how many answers each gets exactly right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from scipy import stats

from hrp.report.table import DASH, Table
from hrp_lab.bench.comparisons import Analysis, shown_arm
from hrp_lab.bench.record import Record
from hrp_lab.report.summary import STARTS, analyses, forgotten, label_of, loss_of

_OTHER_STARTS = ("gradient-svd", "gradient-svd-b", "lora_ga", "eva", "pissa", "olora", "orthogonal",
                 "gaussian", "corda", "mica")  # fmt: skip


def starts_table(
    records: Sequence[Record], forgetting: Sequence[Record], earlier: Sequence[Record]
) -> Table:
    """Return README's table: a row a start and a column a length, with what 450 steps forget.

    ``earlier`` are records of experiments of the same lengths that ran `_OTHER_STARTS`, of which
    the best by its mean stands for all, and full fine-tuning.
    """
    whole, before, measured = analyses(records), analyses(earlier), analyses(forgetting)
    lengths = [analysis.view.steps for analysis in whole]
    rows = [
        [words, *(_loss(whole, steps, arm) for steps in lengths), _first(measured, arm)]
        for arm, words in STARTS.items()
    ]
    others = [min(_others(a), key=lambda arm: _mean(a, arm), default="") for a in before]
    shown = {a.view.steps: other for a, other in zip(before, others, strict=True)}
    rows.append(
        [
            f"best start of another kind † ({', '.join(dict.fromkeys(others))})",
            *(_loss(before, steps, shown.get(steps, "")) for steps in lengths),
            DASH,
        ]
    )
    rows.append(["full fine-tuning †", *(_loss(before, steps, "full") for steps in lengths),
                 _first(measured, "full")])  # fmt: skip
    rows.append(["oracle: full fine-tuning's own directions",
                 *(_loss(whole, steps, "oracle-b") for steps in lengths), DASH])  # fmt: skip
    header = ("start", *(f"{steps} steps in all" for steps in lengths), "forgetting, 450 steps")
    return Table("", header, tuple(map(tuple, rows)))


def _others(analysis: Analysis) -> list[str]:
    return [arm for arm in _OTHER_STARTS if label_of(analysis, arm)]


def _mean(analysis: Analysis, arm: str) -> float:
    label = label_of(analysis, arm)
    return analysis.best[label].mean if label else math.inf


def _loss(whole: Sequence[Analysis], steps: int, arm: str) -> str:
    for analysis in whole:
        label = label_of(analysis, arm) if analysis.view.steps == steps else None
        if label:
            return loss_of(analysis.best[label])
    return DASH


def _first(measured: Sequence[Analysis], arm: str) -> str:
    return next((shown for analysis in measured if (shown := forgotten(analysis, arm))), DASH)


def exact_match_table(records: Sequence[Record]) -> Table:
    """Return the exact answers of each start, counted over its seeds, with 95 % Wilson limits."""
    rows = [row for analysis in analyses(records) for row in _exact_rows(analysis)]
    caption = (
        "Forgetting: rise of the base's loss on passages of Python's standard library, less is "
        "better. Exact answers: generated greedily, over all seeds, with Wilson's 95 % limits."
    )
    header = ("steps in all", "start", "forgetting", "exact answers", "share [95 % CI]")
    return Table(caption, header, tuple(rows))


def _exact_rows(analysis: Analysis) -> Iterator[tuple[str, ...]]:
    for label in analysis.best:
        runs = analysis.records_of(label)
        options = runs[0].run.config["task"]
        asked = options["generate_rows"] * len(runs)
        right = round(sum(run.metrics["exact_match"] for run in runs) * options["generate_rows"])
        low, high = stats.binomtest(right, asked).proportion_ci(method="wilson")
        share = f"{right / asked:.1%} [{low:.1%}, {high:.1%}]"
        forgets = forgotten(analysis, shown_arm(runs[0]))
        yield str(analysis.view.steps), label, forgets, f"{right} of {asked}", share
