"""Makes the small tables that say whether a start is better, than what, and at what price.

They are made of the same analyses as the long tables, so that every number and every verdict is the
one that stands on the experiment's own page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from hrp.report.table import DASH, Table, number
from hrp_lab.bench.comparisons import Analysis, analyse, setting, shown_arm, views
from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import Comparison, Pair, compare_pairs
from hrp_lab.bench.sweeps import FORGETTING, Best
from hrp_lab.report.arm_table import difference, relative_compute, spread

STARTS: Mapping[str, str] = {
    "lora": "LoRA, PEFT's default",
    "hrp-ab": "LoRA from HRP",
    "dora": "DoRA",
    "dora-hrp-ab": "DoRA from HRP",
}
"""These are the starts of the short table, and their names in words."""

PAIRS: Sequence[Pair] = (
    ("hrp-ab", "lora"),
    ("dora-hrp-ab", "dora"),
    ("hrp-ab", "dora"),
    ("hrp-ab", "hrp-ab-frobenius"),
    ("hrp-ab", "squeeze"),
    ("hrp-ab", "squeeze-tail"),
)
"""These are the comparisons that decide; the first of each pair is the one that is to be better."""

NAMES: Mapping[str, str] = {
    "lora": "LoRA",
    "hrp-ab": "HRP",
    "dora": "DoRA",
    "dora-hrp-ab": "DoRA from HRP",
    "hrp-ab-frobenius": "HRP, plain SVD",
    "squeeze": "LoRA-Squeeze",
    "squeeze-tail": "LoRA-Squeeze, trained on",
}
"""These are the names of starts in tables that have little room."""

BUDGETS: Mapping[str, str] = {
    "equal_total": "preheating's steps, out of the same total",
    "equal_compute": "its FLOPs, out of the same total",
    "amortised": "a fifth of its steps: five fine-tunings share it",
    "equal_finetuning": "nothing: preheating comes on top",
}
"""These are the ways to charge preheating, in words."""


def analyses(records: Sequence[Record], basis: str = "equal total steps") -> list[Analysis]:
    """Analyse the views of one basis, in the order of their steps and LoRA's ranks."""
    chosen = [analyse(view) for view in views(records) if view.basis == basis]
    return sorted(chosen, key=lambda analysis: (analysis.view.steps, _rank(analysis)))


def _rank(analysis: Analysis) -> int:
    return int(setting(analysis.view.records[0], "r") or 0)


def label_of(analysis: Analysis, arm: str, budget: str = "equal_total") -> str | None:
    """Return the label of ``arm`` under ``budget``; of several lengths that of the longest.

    The longest is the length of all other arms: shorter ones are tries.
    """
    fitting: list[tuple[float, str]] = []
    for label in analysis.best:
        record = analysis.records_of(label)[0]
        if shown_arm(record) == arm and record.run.config.get("budget", budget) == budget:
            fitting.append((float(setting(record, "preheat_steps") or 0), label))
    return max(fitting)[1] if fitting else None


def short_table(records: Sequence[Record], forgetting: Sequence[Record] = ()) -> Table:
    """Return the starts of `STARTS` at every length: loss, interval against LoRA, verdict, compute.

    ``records`` are those of experiments that differ in length alone; ``forgetting`` those of runs
    at the best rates that measured what is forgotten, where the others did not.
    """
    whole, measured = analyses(records), analyses(forgetting)
    header = ["steps in all", "start", "loss, mean ± sd", "minus LoRA [95 % CI]", "verdict"]
    header += ["compute / LoRA", "forgetting"]
    rows = [tuple(_short_row(analysis, arm, measured)) for analysis in whole for arm in STARTS]
    names = ", ".join(dict.fromkeys(analysis.view.experiment for analysis in whole))
    bests = [best for analysis in whole for best in analysis.best.values()]
    seeds = max((len(best.values) for best in bests), default=0)
    unswept = any(len(best.grid) == 1 for best in bests)
    caption = (
        f"Test loss, less is better; mean over {seeds} seeds at each start's best learning rate"
        + (" ('one rate': none but one was tried)" if unswept else "")
        + " ('edge': at an end of its sweep, which should be wider)"
        + ". Preheating's steps are taken out of the same total. Verdicts are corrected for all "
        "comparisons of an experiment (Holm); intervals are each for its row alone. Compute: "
        f"FLOPs of a run, preheating included. Records: {names}."
    )
    return Table(caption, tuple(header), tuple(rows))


def _short_row(analysis: Analysis, arm: str, measured: Sequence[Analysis]) -> list[str]:
    steps, name = str(analysis.view.steps), f"{STARTS[arm]} ({arm})"
    label = label_of(analysis, arm)
    if label is None:
        return [steps, name, "not run", *[DASH] * 4]
    best = analysis.best[label]
    row = [steps, name, loss_of(best), *_verdict(analysis, label, "")]
    if len(best.grid) == 1 and row[-1] != "control":
        row[-1] += ", one rate"
    row.append(number(relative_compute(analysis, label), 2))
    beside = [other for other in measured if other.view.steps == analysis.view.steps]
    return [*row, next((shown for a in (analysis, *beside) if (shown := forgotten(a, arm))), DASH)]


def loss_of(best: Best) -> str:
    """Return a loss with its spread, and whether the best rate is at an end of its sweep."""
    return spread(best.mean, best.spread) + " (edge)" * (best.on_edge and len(best.grid) > 1)


def forgotten(analysis: Analysis, arm: str) -> str:
    """Return the mean of what runs at an arm's best rate forgot; "" where none measured it."""
    label = label_of(analysis, arm)
    values = analysis.values_of(label, FORGETTING) if label else []
    return f"{sum(values) / len(values):+.2f}" if values else ""


def _verdict(analysis: Analysis, label: str, of_control: str = DASH) -> tuple[str, str]:
    """Return difference and verdict of an arm; the control, which has none, is called that."""
    if label == analysis.control:
        return of_control, "control"
    (comparison,) = [other for other in analysis.comparisons if other.arm == label]
    return _difference(comparison), comparison.verdict


def _difference(comparison: Comparison) -> str:
    return difference(comparison) if comparison.judged else DASH


def pairs_table(records: Sequence[Record]) -> Table:
    """Return a row for each of `PAIRS` and a column for each view, with differences and verdicts.

    Each view is a family of its own for Holm's correction.
    """
    whole = analyses(records)
    names = [f"r = {_rank(analysis)}, {analysis.view.steps} steps" for analysis in whole]
    columns = [_compared(analysis) for analysis in whole]
    rows = [
        (
            f"{NAMES[arm]} against {NAMES[control]}",
            *(column.get((arm, control), DASH) for column in columns),
        )
        for arm, control in PAIRS
    ]
    caption = (
        "Difference in test loss (negative: the first is better), 95 % t interval, verdict "
        "corrected over the column (Holm), at equal steps in all. HRP: LoRA from HRP, the arm "
        "hrp-ab; LoRA-Squeeze cuts rank 128 at the end (squeeze), or trains on at rank r for the "
        f"last fifth (squeeze-tail). {DASH}: not run; 'level': no significant difference."
    )
    return Table(caption, ("comparison", *names), tuple(rows))


def _compared(analysis: Analysis) -> dict[Pair, str]:
    """Compare those of `PAIRS` that the view has, all in one family; return their cells."""
    labels: dict[Pair, Pair] = {}
    for arm, control in PAIRS:
        first, second = label_of(analysis, arm), label_of(analysis, control)
        if first and second:
            labels[first, second] = arm, control
    tested = compare_pairs(analysis.best, list(labels))
    return {
        labels[test.arm, test.control]: f"{_difference(test)} {_level(test.verdict)}"
        for test in tested
    }


def _level(verdict: str) -> str:
    return verdict.replace("no significant difference", "level")


def charging_table(records: Sequence[Record], arm: str = "hrp-ab") -> Table:
    """Return what ``arm`` gains at each length by way of charging, and the share of the gap."""
    steps = sorted({analysis.view.steps for analysis in analyses(records)})
    rows = []
    for budget, words in BUDGETS.items():
        basis = "equal fine-tuning steps" if budget == "equal_finetuning" else "equal total steps"
        by_steps = {analysis.view.steps: analysis for analysis in analyses(records, basis)}
        cells = (_charged(by_steps.get(count), arm, budget) for count in steps)
        rows.append((words, *(cell for pair in cells for cell in pair)))
    header = ["charged for preheating"]
    for count in steps:
        header += [f"{count} steps: minus LoRA [95 % CI]", "gap closed"]
    caption = (
        f"{arm}, difference in test loss. Gap closed: of the way from LoRA to oracle-b, whose "
        "direction is that of full fine-tuning's own change, with Fieller's 95 % limits. 'Rate not "
        "settled': a rate that lacks a seed looks better, so there is no verdict."
    )
    return Table(caption, tuple(header), tuple(rows))


def _charged(analysis: Analysis | None, arm: str, budget: str) -> tuple[str, str]:
    label = label_of(analysis, arm, budget) if analysis else None
    if analysis is None or label is None:
        return DASH, DASH
    shown, verdict = _verdict(analysis, label)
    share = analysis.gaps.get(label)
    return f"{shown} {_level(verdict)}".removeprefix(f"{DASH} "), str(share) if share else DASH


def seeds_table(records: Sequence[Record], settings: Sequence[str]) -> Table:
    """Return each configuration's score by seed at its best rate, named by ``settings``."""
    (analysis,) = analyses(records)
    seeds = sorted({record.run.seed for record in records})
    rows = []
    for label, best in analysis.best.items():
        record = analysis.records_of(label)[0]
        values = (number(best.values.get(seed, math.nan), 3) for seed in seeds)
        shown = _verdict(analysis, label)
        rate = f"{best.learning_rate:g}{' (edge)' * best.on_edge}"
        rows.append(
            (record.arm, *_named(record, settings), *values, number(best.mean), *shown, rate)
        )
    header = ("start", *(_WORDS.get(name, name) for name in settings))
    header += (*(f"seed {seed}" for seed in seeds), "mean", "minus LoRA [95 % CI]", "verdict")
    caption = (
        f"{analysis.view.title}: {analysis.metric}, {analysis.sense}; each at the learning rate "
        f"that is best by the mean ('edge': at an end of the sweep, which should be wider). {_RULE}"
    )
    return Table(caption, (*header, "best rate"), tuple(rows))


def classifiers_table(
    records_by_task: Mapping[str, Sequence[Record]], settings: Sequence[str]
) -> Table:
    """Return a row for each configuration and, for each task, its mean, worst seed and verdict.

    Scores are those of which more is better.
    """
    cells: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {}
    for task, records in records_by_task.items():
        (analysis,) = analyses(records)
        for label, best in analysis.best.items():
            record = analysis.records_of(label)[0]
            key = (record.arm, *_named(record, settings))
            shown, verdict = _verdict(analysis, label)
            score = f"{number(best.mean, 3)} ({number(min(best.values.values()), 3)})"
            words = f"{shown} {_level(verdict)}".removeprefix(DASH)
            cells.setdefault(key, {})[task] = (score, words)
    empty = (DASH, DASH)
    rows = [
        (
            NAMES.get(key[0], key[0]),
            *key[1:],
            *(cell for task in records_by_task for cell in by_task.get(task, empty)),
        )
        for key, by_task in sorted(cells.items(), key=lambda item: (item[0][0] != "lora", item[0]))
    ]
    header = ["start", *(_WORDS.get(name, name) for name in settings)]
    for task in records_by_task:
        header += [f"{task} (worst seed)", "minus LoRA [95 % CI]"]
    caption = (
        "Means, of which more is better; 'level': no significant difference after Holm's "
        "correction over all of an experiment's settings, also where an interval by itself leaves "
        f"0 out. {_RULE}"
    )
    return Table(caption, tuple(header), tuple(rows))


def _named(record: Record, settings: Sequence[str]) -> list[str]:
    """Return the settings of preheating in words; dashes where there was none."""
    section = record.run.config.get("hrp")
    if section is None:
        return [DASH] * len(settings)
    words: dict[object, str] = {True: "yes", False: "no", None: "by the rule"}
    values = [section.get(name) for name in settings]
    return [words[v] if isinstance(v, bool | None) else f"{v:g}" for v in values]


_WORDS = {
    "preheat_steps": "preheating's steps",
    "learning_rate": "preheating's rate",
    "warmup_share": "warm-up",
    "keep": "head kept",
}
_RULE = "By the rule: preheating at sqrt(r / R) of fine-tuning's rate."
