"""README's table of the starts, and how many answers each gets exactly right."""

from __future__ import annotations

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

    def row(words: str, of: Sequence[Analysis], arm: str, forgets: bool = True) -> tuple[str, ...]:
        first = next((shown for a in measured if (shown := forgotten(a, arm))), DASH)
        return words, *(_loss(of, steps, arm) for steps in lengths), first if forgets else DASH

    others = {analysis.view.steps: _best_other(analysis) for analysis in before}
    named = ", ".join(dict.fromkeys(others.values()))
    shown = [_loss(before, steps, others.get(steps, "")) for steps in lengths]
    rows = [row(words, whole, arm) for arm, words in STARTS.items()]
    rows += [
        (f"best start of another kind † ({named})", *shown, DASH),
        row("full fine-tuning †", before, "full"),
        row("oracle: full fine-tuning's own directions", whole, "oracle-b", forgets=False),
    ]
    header = ("start", *(f"{steps} steps in all" for steps in lengths), "forgetting, 450 steps")
    return Table("", header, tuple(rows))


def _best_other(analysis: Analysis) -> str:
    """Return the best of `_OTHER_STARTS`, "" where none was run; arms come best first."""
    labels = {label_of(analysis, arm): arm for arm in _OTHER_STARTS}
    return next((labels[label] for label in analysis.best if label in labels), "")


def _loss(whole: Sequence[Analysis], steps: int, arm: str) -> str:
    for analysis in whole:
        label = label_of(analysis, arm) if analysis.view.steps == steps else None
        if label:
            return loss_of(analysis.best[label])
    return DASH


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
