"""The short tables: made of the records, the same numbers as on the long pages, as printed."""

from __future__ import annotations

import dataclasses
import re
import runpy
import sys
from pathlib import Path

import pytest

from helpers.synthetic import full_record
from hrp.report.table import DASH
from hrp_lab.bench.comparisons import analyse, views
from hrp_lab.report import summary
from hrp_lab.report.arm_table import arms_table
from hrp_lab.report.starts_summary import exact_match_table, starts_table

ROOT = Path(__file__).parents[3]
SWEPT = (
    "kept-gsm8k-450", "kept-gsm8k-930", "kept-gsm8k-1860", "kept-gsm8k-r16", "kept-gsm8k-tries",
    "kept-gsm8k-r8", "kept-gsm8k-tries-cut", "kept-gsm8k-variants", "kept-gsm8k-warmup",
    "kept-function-names", "kept-function-names-450", "kept-wordproblems",
)  # fmt: skip


def script(name: str) -> dict:
    """Return the names of a script of experiments/, which import one another."""
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        return runpy.run_path(str(ROOT / "experiments" / f"{name}.py"))
    finally:
        sys.path.remove(str(ROOT / "experiments"))


@pytest.fixture(scope="module")
def pages() -> dict:
    return script("results_pages")


@pytest.fixture(scope="module")
def tables(pages) -> str:
    """Return every table that docs/results.md and its reading draw their numbers from."""
    of_kind = script("summary_table")["table"]
    kinds = ("short", "readme", "exact", "pairs", "charging")
    texts = [of_kind(kind).markdown() for kind in kinds]
    classifiers = script("summary_table")["seeds_tables"](
        pages["KEPT"]["kept-classifiers"].experiments
    )
    texts += [by_seed.markdown() for by_seed in classifiers]
    for name in SWEPT:
        texts += [arms_table(analysis).markdown() for analysis in of_experiment(pages, name)]
    return "".join(texts)


def of_experiment(pages, name):
    return [analyse(view) for view in views(pages["records_of"]([name]))]


def kept(steps=450, losses=(("lora", 1.44), ("hrp-ab", 1.42), ("dora", 1.40))):
    section = {"truncation": "loss", "preheat_steps": 30}
    return [
        full_record(
            arm, seed, rate, steps - 30 * (arm == "hrp-ab"), 30 * (arm == "hrp-ab"),
            loss + 0.01 * seed + abs(rate - 2e-3), budget="equal_total",
            **({"hrp": section} if arm == "hrp-ab" else {}),
        )
        for arm, loss in losses
        for seed in range(3)
        for rate in (1e-3, 2e-3, 4e-3)
    ]  # fmt: skip


def test_the_short_table_has_a_row_for_each_start_and_length_and_says_what_did_not_run():
    table = summary.short_table([*kept(450), *kept(930)])
    assert [row[0] for row in table.rows] == ["450"] * 4 + ["930"] * 4
    assert {len(row) for row in table.rows} == {len(table.header)}
    by_start = {row[1]: row for row in table.rows[:4]}
    assert by_start["LoRA, PEFT's default (lora)"][2:5] == ("1.4500 ± 0.0100", "", "control")
    assert by_start["LoRA from HRP (hrp-ab)"][3].startswith("-0.0200 [")
    assert by_start["DoRA from HRP (dora-hrp-ab)"][2:] == ("not run", *[DASH] * 4)


def forgetful(steps=450, rate=2e-3):
    return [
        dataclasses.replace(
            record, metrics=record.metrics | {"forgetting": 0.5 + seed, "exact_match": 0.25},
            run=dataclasses.replace(
                record.run, experiment="f",
                config=record.run.config | {"task": {"generate_rows": 8}}),
        )
        for record in kept(steps)
        if record.run.learning_rate == rate
        for seed in [record.run.seed]
    ]  # fmt: skip


def test_forgetting_comes_from_the_runs_that_measured_it_at_the_same_length():
    table = summary.short_table([*kept(450), *kept(930)], forgetful(930))
    shown = {(row[0], row[1]): row[-1] for row in table.rows}
    assert shown["930", "DoRA (dora)"] == "+1.50"
    assert shown["450", "DoRA (dora)"] == DASH


def test_readme_s_table_takes_the_best_other_start_of_each_length():
    earlier = [
        full_record(arm, seed, 2e-3, 450, 0, loss, budget="equal_total")
        for arm, loss in (("lora", 1.5), ("eva", 1.6), ("pissa", 1.7), ("full", 1.1))
        for seed in range(3)
    ]
    rows = {row[0]: row[1:] for row in starts_table(kept(), forgetful(), earlier).rows}
    assert rows["best start of another kind † (eva)"] == ("1.6000 ± 0.0000", DASH)
    assert rows["full fine-tuning †"][0] == "1.1000 ± 0.0000"
    assert rows["DoRA"] == ("1.4100 ± 0.0100", "+1.50")
    assert rows["oracle: full fine-tuning's own directions"] == (DASH, DASH)


def test_exact_answers_are_counted_over_the_seeds_with_wilson_s_limits():
    row = exact_match_table(forgetful()).rows[0]
    low, high = (0.1200, 0.4490)  # 6 of 24, by Wilson's formula
    assert row[3:] == ("6 of 24", f"25.0% [{low:.1%}, {high:.1%}]")


def test_pairs_are_compared_in_one_family_a_column():
    table = summary.pairs_table(kept())
    cells = {row[0]: row[1] for row in table.rows}
    assert cells["HRP against DoRA"].startswith("+0.0200 [")
    assert cells["DoRA from HRP against DoRA"] == DASH


def test_no_superseded_record_is_taken_for_today_s_arm():
    old = [record for record in kept() if record.arm != "hrp-ab"]
    old += [
        full_record("hrp-ab", seed, 2e-3, 420, 30, 1.2, budget="equal_total",
                    hrp={"preheat_steps": 30})
        for seed in range(3)
    ]  # fmt: skip
    rows = {row[1]: row for row in summary.short_table(old).rows}
    assert rows["LoRA from HRP (hrp-ab)"][2] == "not run"


def test_the_readme_s_table_has_at_most_twelve_rows_and_every_verdict_of_the_long_page(pages):
    table = script("summary_table")["table"]("short")
    assert len(table.rows) <= 12
    (long_page, *_) = of_experiment(pages, "kept-gsm8k-930")
    verdicts = {comparison.arm: comparison.verdict for comparison in long_page.comparisons}
    row = next(row for row in table.rows if row[0] == "930" and "(hrp-ab)" in row[1])
    assert row[4] == verdicts["hrp-ab budget=equal_total"]


def test_the_results_page_is_the_one_that_the_records_make(pages):
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == pages["main_page"]()
    for name, text in pages["readings"]().items():
        assert (ROOT / "docs" / "results" / f"{name}.md").read_text(encoding="utf-8") == text


def test_the_results_page_names_what_speaks_against_first_and_prints_no_stray_backslash():
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert text.index("against HRP") < text.index("| steps in all |")
    generated = [*(ROOT / "docs" / "results").glob("*.md"), ROOT / "docs" / "results.md"]
    for page in generated:
        assert "\\<" not in page.read_text(encoding="utf-8"), page
        assert "‡" not in page.read_text(encoding="utf-8"), page


def test_every_experiment_has_its_page_its_place_in_the_menu_and_its_figures(pages):
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name, shown in (pages["KEPT"] | pages["EARLIER"]).items():
        page = ROOT / "docs" / "results" / f"{name}.md"
        text = page.read_text(encoding="utf-8")
        assert f"results/{name}.md" in menu
        figures = re.findall(r"\]\((\.\./figures/[^)]+)\)", text)
        assert bool(figures) == bool(shown.figures)
        for figure in figures:
            assert (page.parent / figure).is_file(), figure


def test_every_number_of_the_reading_is_one_of_the_records_tables(tables):
    text = (ROOT / "experiments" / "reading-kept.md").read_text(encoding="utf-8")
    numbers = set(re.findall(r"(?<![\d.])\d\.\d{4}(?!\d)", text))
    assert len(numbers) > 40
    assert {number for number in numbers if number not in tables} == set()


def test_readme_s_table_is_put_between_its_marks_and_nowhere_else(pages):
    begin, end = pages["README_MARKS"]
    made = pages["with_table"](f"before\n{begin}\nold\n{end}\nafter\n")
    assert made.startswith(f"before\n{begin}\n| start | 450 steps in all |")
    assert made.endswith(f"{end}\nafter\n")
    assert "old" not in made
    assert pages["with_table"]("no marks here\n") == "no marks here\n"
