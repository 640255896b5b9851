import dataclasses
import re
from html import unescape

import pytest

from helpers.synthetic import benchmark, full_record
from hrp.report.blocks import FigureBlock, Heading, TableBlock
from hrp.report.table import markdown_text
from hrp_lab.bench.record import RecordError
from hrp_lab.report.markdown import write_page
from hrp_lab.report.sections import report_page, sections


def of_kind(kind, parts):
    return [block for section in parts for block in section.blocks if isinstance(block, kind)]


def grid():
    return [
        full_record(
            "hrp-b", seed, 1e-3, 450 - K, K, 1.40 + 0.001 * R + 0.0001 * (seed * K % 7),
            preheat_rank=R, preheat_steps=K,
        )
        for R in (4, 8, 16) for K in (10, 20) for seed in range(3)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def records():
    failed = dataclasses.replace(full_record("pissa"), status="failed", reason="out of memory")
    return [*benchmark(), *grid(), failed]


@pytest.fixture(scope="module")
def parts(records):
    return sections(records)


def test_views_come_first_then_runs_without_a_result_then_provenance(parts):
    titles = [section.title for section in parts]
    assert titles == [
        "GSM8K, 450 steps in all (standin-a)",
        "GSM8K, 450 steps of fine-tuning, the start on top (standin-a)",
        "Runs without a result",
        "Provenance",
    ]
    assert sections([]) == []


def test_both_pages_show_every_section_heading_table_and_figure_in_the_list_s_order(
    records, parts, tmp_path
):
    figures, tables = of_kind(FigureBlock, parts), of_kind(TableBlock, parts)
    count = write_page(records, tmp_path / "page.md")
    markdown, html = (tmp_path / "page.md").read_text(), report_page(records, {})
    assert count == len(figures) == html.count("<figure>") == markdown.count("![")
    assert (
        len(re.findall("^[|] --- ", markdown, re.MULTILINE)) == len(tables) == html.count("<table>")
    )
    for heading in of_kind(Heading, parts):
        assert f"### {markdown_text(heading.text)}\n" in markdown
        assert f"<h3>{heading.text}</h3>" in html
    titles = [section.title for section in parts]
    assert re.findall("^## (.*)$", markdown, re.MULTILINE) == list(map(markdown_text, titles))
    assert re.findall("<h2>([^<]*)</h2>", html) == titles
    captions = [block.caption for block in figures]
    assert re.findall(r"^!\[(.*)\]\(", markdown, re.MULTILINE) == list(map(markdown_text, captions))
    assert [text[:-1] for text in re.findall("<figcaption>([^<]*)<", unescape(html))] == captions


def test_an_ablation_s_maps_and_levels_are_there_under_names_of_their_own(parts):
    view = parts[0]
    names = [block.name for block in of_kind(FigureBlock, [view])]
    stem = "standin-a-gsm8k-equal total steps-450"
    kinds = ("hrp-b-ablation", "differences", "sweep", "losses")
    assert names == [f"{stem}-{kind}" for kind in kinds]
    captions = [block.table.caption for block in of_kind(TableBlock, [view])]
    assert any(caption.startswith("Each level of a factor") for caption in captions)
    every = [block.name for block in of_kind(FigureBlock, parts)]
    assert len(every) == len(set(every))


def test_nothing_is_drawn_of_differences_without_verdicts_nor_of_sweeps_without_rates():
    unsettled = sections([*benchmark(), full_record("lora", 0, 5e-4, 450, 0, loss=1.2)])[0]
    assert not [b for b in of_kind(FigureBlock, [unsettled]) if b.name.endswith("-differences")]
    single = sections([full_record("hrp-ab", seed, 1e-3) for seed in range(2)])[0]
    assert [b.name.rpartition("-")[2] for b in of_kind(FigureBlock, [single])] == ["losses"]


@pytest.mark.parametrize(("arms", "summaries"), [(40, []), (41, ["All arms", "Costs of all arms"])])
def test_tables_of_more_than_forty_arms_are_folded(arms, summaries):
    records = [full_record(f"arm-{number}", 0, 1e-3, 450, 0) for number in range(arms)]
    folded = [block.summary for block in of_kind(TableBlock, sections(records)) if block.summary]
    assert folded == [*summaries, "Records behind the table"]


def test_metric_and_control_are_those_asked_for():
    view = sections(benchmark(), metric="exact_match", control="hrp-ab")[0]
    header = of_kind(TableBlock, [view])[0].table.header
    assert header[1:3] == ("exact_match, mean ± sd", "minus hrp-ab [95 % CI]")


def test_two_records_of_the_same_run_are_refused():
    with pytest.raises(RecordError, match="two records of arm 'lora'"):
        sections([full_record("lora"), full_record("lora")])
