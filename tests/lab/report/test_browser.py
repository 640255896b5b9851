"""The page in a real browser: headless Chromium, skipped where it is not installed."""

import json
import re
import shutil
import subprocess

import matplotlib.image
import pytest

from helpers.spectra_made import made_spectrum
from helpers.synthetic import benchmark, full_record
from hrp_lab.report.sections import report_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
)
WIDTHS = (390, 1280)
# The page itself forbids scripts; a copy without its policy is measured from within, in a frame,
# since a window is never narrower than 500 pixels where no screenshot is taken.
MEASURE = """<script>
const box = e => { const b = e.getBoundingClientRect(); return [b.width, b.height, b.right]; };
parent.postMessage(JSON.stringify({
  window: innerWidth, content: document.documentElement.scrollWidth,
  figures: [...document.querySelectorAll("figure svg")].map(box),
  marks: [...document.querySelectorAll("figure svg")].map(svg =>
    [...svg.querySelectorAll("path, use, image")].filter(e => box(e)[0] + box(e)[1] > 0).length),
  scrolled: [...document.querySelectorAll(".scroll")].map(e => [e.clientWidth, e.scrollWidth]),
  fontSize: Math.min(...[...document.querySelectorAll("td, p, li")].map(
    e => parseFloat(getComputedStyle(e).fontSize))),
  background: getComputedStyle(document.body).backgroundColor,
}), "*");
</script></body>"""

FRAME = """<body><script>
onmessage = event => { document.documentElement.dataset.measured = event.data; };
</script><iframe width="WIDTH" height="2000" style="border: 0" src="copy.html"></iframe></body>"""


def chromium(tmp_path, *arguments):
    ran = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    console = [line for line in ran.stderr.splitlines() if ":CONSOLE" in line]
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, console


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    records = benchmark() + [
        full_record("hrp-b", seed, 1e-3, 450 - K, K, preheat_rank=R, preheat_steps=K)
        for R in (4, 8) for K in (10, 20) for seed in (0, 1)
    ]  # fmt: skip
    spectra = {"first": made_spectrum(0), "second": made_spectrum(1)}
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(report_page(records, spectra, title="<script>throw 1</script>"))
    return path


def measured(page, tmp_path, width, *arguments):
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (tmp_path / "copy.html").write_text(text.replace("</body>", MEASURE))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    dom, _ = chromium(tmp_path, "--window-size=1400,2100", *arguments, "--dump-dom", frame.as_uri())
    measures = re.search(r'data-measured="([^"]*)"', dom)
    return json.loads(measures[1].replace("&quot;", '"'))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_drawn_and_nothing_is_wider_than_the_window(page, tmp_path, width):
    seen = measured(page, tmp_path, width)
    assert seen["window"] == width
    assert seen["content"] <= width
    assert len(seen["figures"]) == page.read_text().count("<svg") >= 12
    for (across, down, right), marks in zip(seen["figures"], seen["marks"], strict=True):
        assert across >= min(330, width - 60)
        assert down >= 100
        assert right <= width
        assert marks >= 20
    assert seen["fontSize"] >= 13


def test_wide_tables_scroll_in_themselves_on_a_phone(page, tmp_path):
    seen = measured(page, tmp_path, 390)
    assert any(whole > shown for shown, whole in seen["scrolled"])
    assert all(shown <= 390 for shown, _ in seen["scrolled"])


def test_the_page_follows_the_reader_s_light_or_dark(page, tmp_path):
    light = measured(page, tmp_path, 1280)["background"]
    dark = measured(page, tmp_path, 1280, "--blink-settings=preferredColorScheme=0")["background"]
    assert light == "rgb(255, 255, 255)"
    assert sum(map(int, re.findall(r"\d+", dark))) < 150


@pytest.mark.parametrize("width", WIDTHS)
def test_the_console_stays_empty_and_the_screenshot_does_not(page, tmp_path, width):
    shot = tmp_path / "shot.png"
    _, console = chromium(
        tmp_path, f"--window-size={width},1600", f"--screenshot={shot}", page.as_uri()
    )
    assert console == []
    pixels = matplotlib.image.imread(shot)
    assert pixels.shape[1] == width
    assert len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, pixels.shape[2])}) > 20


def test_an_error_on_the_console_would_have_been_seen(tmp_path):
    (tmp_path / "bad.html").write_text("<body><script>throw new Error('planted')</script>")
    _, console = chromium(tmp_path, "--dump-dom", (tmp_path / "bad.html").as_uri())
    assert any("planted" in line for line in console)


def test_the_page_s_own_policy_stops_a_script_that_got_in(page, tmp_path):
    broken = tmp_path / "broken.html"
    script = "<script>document.title = 'taken over'</script></body>"
    broken.write_text(page.read_text().replace("</body>", script))
    dom, console = chromium(tmp_path, "--dump-dom", broken.as_uri())
    assert "<title>taken over" not in dom
    assert any("Content Security Policy" in line for line in console)
