"""``hrp-lab bench report`` writes records, and spectra beside them, as pages."""

from __future__ import annotations

import pytest

from helpers.faults import fault
from helpers.spectra_made import made_spectrum
from helpers.synthetic import benchmark
from hrp_lab.bench.record import Record
from hrp_lab.bench.record_store import load_records, pack, write_record
from hrp_lab.cli.bench_commands import main


@pytest.fixture
def records(tmp_path):
    for record in benchmark():
        write_record(record, tmp_path / "records")
    return tmp_path / "records"


@pytest.fixture
def spectrum(tmp_path):
    made_spectrum(0).save(tmp_path / "spectrum")
    return tmp_path / "spectrum"


def report(*arguments) -> int:
    return main(["report", *map(str, arguments)])


def test_one_html_page_shows_records_and_spectra(records, spectrum, tmp_path, capsys):
    made_spectrum(1).save(tmp_path / "other")
    out = tmp_path / "new" / "page.html"
    shown = ["--spectrum", spectrum, "--spectrum", tmp_path / "other"]
    assert report(records, *shown, "--out", out) == 0
    text = out.read_text()
    assert "oracle-b, hrp-ab: significantly better than lora." in text
    assert "<h1>HRP benchmark</h1>" in text
    assert f"Spectrum {spectrum}" in text
    assert f"Spectrum {tmp_path / 'other'}" in text
    assert f"wrote {out} (36 records, 2 spectra)" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]


@fault(
    "Whose file is it",
    "your own file at `--out`, or a page of another command",
    command="hrp report, hrp-lab bench report (HTML)",
    outcome="refused; a page of the same command is replaced",
)
@pytest.mark.parametrize("theirs", ["mine", '<meta name="generator" content="hrp report">'])
def test_a_file_that_is_no_report_of_the_bench_is_not_replaced(records, tmp_path, capsys, theirs):
    out = tmp_path / "page.html"
    assert report(records, "--out", out) == report(records, "--out", out) == 0
    out.write_text(theirs)
    assert report(records, "--out", out) == 2
    assert "is no page of `hrp-lab bench report` and is not replaced" in capsys.readouterr().err
    assert out.read_text() == theirs


def test_a_markdown_page_s_numbers_can_be_traced(records, tmp_path, capsys):
    out = tmp_path / "docs" / "results.md"
    assert report(records, "--out", out) == 0
    page = out.read_text()
    assert page.startswith("# Results\n")
    assert all(record.run_id in page for record in load_records(records) if is_best(record))
    assert "| hrp-ab |" in page
    figures = list((tmp_path / "docs" / "figures").glob("*.png"))
    assert figures
    assert all(f"figures/{path.name}" in page for path in figures)
    assert f"wrote {out} (36 records, {len(figures)} figures)" in capsys.readouterr().out


def is_best(record) -> bool:
    return record.run.learning_rate == 2e-3


@pytest.mark.parametrize("name", ["page.html", "page.md"])
def test_packed_records_make_the_same_page_as_single_ones(records, tmp_path, name):
    pages = []
    for record in load_records(records):  # to the digits of packed curves, or pixels would differ
        write_record(Record.from_json(record.to_line()), records)
    for packed in (False, True):
        if packed:
            pack(records)
            assert not list(records.iterdir())
        out = tmp_path / f"packed-{packed}" / name
        assert report(f"{records}.jsonl" if packed else records, "--out", out) == 0
        pages.append({path.name: path.read_bytes() for path in out.parent.rglob("*.*")})
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("name", "title", "column"),
    [
        ("page.html", "<h1>A title</h1>", "exact_match, mean ± sd</th>"),
        ("page.md", "# A title\n", "| exact\\_match, mean ± sd |"),
    ],
)
def test_a_page_judges_by_the_metric_and_control_asked_for(records, tmp_path, name, title, column):
    out = tmp_path / name
    asked = ["--metric", "exact_match", "--control", "hrp-ab", "--title", "A title"]
    assert report(records, "--out", out, *asked) == 0
    text = out.read_text()
    assert title in text
    assert column in text
    assert "minus hrp-ab" in text


def test_sources_that_share_a_run_count_it_once(records, tmp_path, capsys):
    for record in load_records(records)[:5]:
        write_record(record, tmp_path / "again")
    assert report(records, tmp_path / "again", "--out", tmp_path / "page.html") == 0
    assert "(36 records, 0 spectra)" in capsys.readouterr().out


def test_a_reading_of_one_s_own_begins_a_markdown_page(records, tmp_path, capsys):
    (tmp_path / "reading.md").write_text("All within the noise.\n")
    command = [records, "--out", tmp_path / "page.md", "--reading"]
    assert report(*command, tmp_path / "reading.md") == 0
    assert (tmp_path / "page.md").read_text().startswith("# Results\n\nAll within the noise.\n\n##")
    assert report(*command, tmp_path / "absent.md") == 2
    assert "absent.md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "page.html"], "'nowhere' is no folder"),
        (["nowhere", "--out", "page.md"], "'nowhere' is no folder"),
        (["{records}", "--spectrum", "nowhere", "--out", "page.html"], "is no spectrum folder"),
        (
            ["{records}", "--control", "lore", "--out", "page.html"],
            "`--control` must be one of 'hrp-ab', 'lora', 'oracle-b', got 'lore'",
        ),
        (["{records}", "--control", "lore", "--out", "page.md"], "`--control` must be one of"),
        (
            ["{records}", "--metric", "rouge", "--out", "page.html"],
            "must be one of 'eval_loss', 'exact_match'",
        ),
        (["{records}", "--out", "page.pdf"], "`--out` must end in .html or .md, got 'page.pdf'"),
        (
            ["{records}", "--spectrum", "{records}", "--out", "page.md"],
            "`--spectrum` needs `--out` to end in .html, got 'page.md'",
        ),
        (
            ["{records}", "--reading", "r.md", "--out", "page.html"],
            "`--reading` needs `--out` to end in .md, got 'page.html'",
        ),
        (["{records}", "--out", "file/page.html"], "file"),
        (["{broken}", "--out", "page.html"], "half.json': not JSON"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(
    records, tmp_path, monkeypatch, capsys, arguments, message
):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    (tmp_path / "empty" / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "half.json").write_text('{"schema": "hrp-rec')
    given = [one.format(records=records, broken=tmp_path / "broken") for one in arguments]
    assert report(*given) == 2
    error = capsys.readouterr().err
    assert error.startswith("hrp-lab bench report: ")
    assert message in error
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["file"]


def test_a_report_of_nothing_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        report("--out", tmp_path / "page.html")
    assert stopped.value.code == 2
    assert "the following arguments are required: records" in capsys.readouterr().err
