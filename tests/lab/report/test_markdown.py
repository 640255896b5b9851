import dataclasses
import re

import pytest

from helpers.faults import fault
from helpers.synthetic import benchmark
from hrp_lab.bench.record import RecordError
from hrp_lab.report.markdown import write_page


def test_the_reading_stands_first_and_every_figure_lies_beside_the_page(tmp_path):
    out = tmp_path / "docs" / "page.md"
    count = write_page(benchmark(), out, title="A title", reading="\nWhat *we* read.\n\n")
    text = out.read_text()
    assert text.startswith("# A title\n\nWhat *we* read.\n\n## GSM8K, 450 steps in all")
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(linked) == count == len(set(linked)) > 3
    assert sorted(out.parent / name for name in linked) == sorted(out.parent.glob("figures/*"))


def test_without_a_reading_the_first_view_follows_the_title(tmp_path):
    write_page(benchmark(), tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text().startswith("# Results\n\n## GSM8K, 450 steps")


def test_no_experiment_s_name_leads_a_figure_out_of_its_folder(tmp_path):
    records = [
        dataclasses.replace(record, run=dataclasses.replace(record.run, experiment="../../x y/$"))
        for record in benchmark()
    ]
    count = write_page(records, tmp_path / "a" / "b" / "page.md")
    figures = list((tmp_path / "a" / "b" / "figures").iterdir())
    assert len(figures) == count
    assert all(re.fullmatch(r"-x-y-[A-Za-z0-9+-]+\.png", path.name) for path in figures)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == count + 1


HOSTILE = "<img src=x onerror=alert(1)> ![a](http://evil) `|` [l](javascript:1) *b*"
LIVE = (r"(?<!\\)<img", r"(?<!\\)\[a", r"(?<!\\)\[l", r"(?<!\\)\*b")


@fault(
    "Hostile or damaged input",
    "an arm named `<img onerror=...>`",
    command="hrp-lab bench report",
    outcome="dead text",
)
def test_no_string_of_a_record_is_live_in_the_page(tmp_path):
    records = []
    for record in benchmark():
        arm = HOSTILE if record.arm == "hrp-ab" else record.arm
        run = dataclasses.replace(record.run, experiment=HOSTILE, task=HOSTILE, arm=arm)
        records.append(dataclasses.replace(record, run=run))
    write_page(records, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert "onerror" in text
    for live in LIVE:
        assert not re.search(live, text), live


def test_without_records_or_with_records_twice_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="`records` must not be empty"):
        write_page([], tmp_path / "page.md")
    with pytest.raises(RecordError, match="two records"):
        write_page(benchmark() * 2, tmp_path / "page.md")
    assert not list(tmp_path.iterdir())
