import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from helpers.spectra_made import made_spectrum
from helpers.synthetic import benchmark, full_record
from hrp_lab.report.sections import report_page

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`${x}"
ALLOWED = {"html", "head", "meta", "title", "style", "body", "main", "nav", "section", "div", "h1",
           "h2", "h3", "p", "ul", "li", "a", "table", "thead", "tbody", "tr", "th", "td", "details",
           "summary", "figure", "figcaption", "svg", "defs", "g", "path", "use", "clippath", "rect",
           "image", "lineargradient", "stop"}  # fmt: skip


class Reader(HTMLParser):
    """Elements, attributes and text of a page; complains of what is not closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.texts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.tags.append(name)
        self.attributes += attributes
        if name != "meta":
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.tags.append(name)
        self.attributes += attributes

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append(data)


def hostile(record):
    run = dataclasses.replace(
        record.run,
        experiment=SCRIPT,
        task=SCRIPT,
        arm=record.arm if record.arm == "lora" else record.arm + SCRIPT,
        config={**record.run.config, "model": SCRIPT},
    )
    return dataclasses.replace(
        record,
        run=run,
        metrics={"eval_loss": record.metrics["eval_loss"], SCRIPT: 1.0},
        versions={SCRIPT: SCRIPT},
        device=SCRIPT,
        command=SCRIPT,
        git_commit=SCRIPT,
        started=SCRIPT,
        ended=SCRIPT,
    )


@pytest.fixture(scope="module")
def hostile_page():
    records = [hostile(record) for record in benchmark()]
    records += [
        hostile(full_record("hrp-b", seed, 1e-3, 450 - K, K, preheat_rank=R, preheat_steps=K))
        for R in (4, 8) for K in (10, 20) for seed in (0, 1)
    ]  # fmt: skip
    records.append(
        dataclasses.replace(hostile(full_record("pissa")), status="failed", reason=SCRIPT)
    )
    facts = {"base_model": SCRIPT, "config": {SCRIPT: SCRIPT}, SCRIPT: SCRIPT}
    spectra = {SCRIPT: made_spectrum(prefix=SCRIPT, **facts), "b": made_spectrum(1, prefix=SCRIPT)}
    return report_page(records, spectra, title=SCRIPT)


def test_a_script_in_any_name_stays_text(hostile_page):
    page = Reader(hostile_page)
    assert set(page.tags) <= ALLOWED
    assert not page.open
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert sum(SCRIPT in text for text in page.texts) >= 20
    assert "<script" not in hostile_page.lower()
    assert "<img" not in hostile_page.lower()


def test_every_kind_of_part_was_there_to_be_attacked(hostile_page):
    assert hostile_page.count("<svg") >= 12
    parts = ("over preheating rank and steps", "Costs", "Runs without a result", "Provenance",
             "Spectrum", "Alignment with")  # fmt: skip
    content = hostile_page.partition("</nav>")[2]
    starts = [content.index(part) for part in parts]
    assert starts == sorted(starts)


def test_nothing_is_loaded_from_elsewhere_and_scripts_are_forbidden(hostile_page):
    page = Reader(hostile_page)
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert links
    assert all(link.startswith(("#", "data:image/png")) for link in links)
    assert "@import" not in hostile_page
    assert not re.search(r"url\((?!#)", hostile_page)
    policy = next(value for _, value in page.attributes if value and "default-src" in value)
    assert policy.startswith("default-src 'none'")
    assert "script-src" not in policy


def test_every_link_has_its_target_and_every_id_is_there_once(hostile_page):
    page = Reader(hostile_page)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {
        v[1:] for name, v in page.attributes if name in ("href", "xlink:href") and v[0] == "#"
    }
    assert targets <= set(ids)


def test_the_page_is_the_same_each_time():
    assert report_page(benchmark(), {}) == report_page(benchmark()[::-1], {})


def test_records_alone_and_spectra_alone_make_a_page():
    assert "<h2>Spectrum a</h2>" in report_page([], {"a": made_spectrum()})
    assert "Spectrum" not in report_page(benchmark(), {})


def test_a_report_imports_nothing_that_trains():
    code = (
        "import sys, hrp_lab.report.sections, hrp.cli.report, hrp.cli.inspect\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('peft', 'transformers', 'trl', "
        "'accelerate') or m.startswith(('hrp.preheating', 'hrp.adapters', 'hrp.initialization'))])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
