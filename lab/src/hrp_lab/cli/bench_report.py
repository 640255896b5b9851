"""``hrp-lab bench report`` writes records, and spectra beside them, as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hrp_lab.bench.record import Record

_CONTROL = "lora"


def add_report(commands: Any) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "report", help="write records' tables and figures as a Markdown or an HTML page"
    )
    add_sources(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE",
        help="FILE.html, one self-contained page, or FILE.md, with its figures beside it",
    )  # fmt: skip
    parser.add_argument(
        "--title", help="of the page (default: 'HRP benchmark' in HTML, 'Results' in Markdown)"
    )
    parser.add_argument("--metric", help="to judge by (default: each task's own)")
    parser.add_argument(
        "--control", default=_CONTROL, help="arm to compare with (default: %(default)s)"
    )
    parser.add_argument(
        "--spectrum", action="append", default=[], type=Path, metavar="DIR",
        help="HTML: a spectrum to show; give it again for more, compared with the first",
    )  # fmt: skip
    parser.add_argument(
        "--reading", type=Path, metavar="FILE",
        help="Markdown: a text of your own to begin the page with",
    )  # fmt: skip


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names records of any number of experiments."""
    parser.add_argument(
        "records", type=Path, nargs="+", help="folders of records, or their packed files"
    )


def report(options: argparse.Namespace, _: Sequence[str]) -> int:
    """Write the page that the options ask for; returns 0.

    Raises:
        ValueError, OSError: no such records, metric, control, spectrum or kind of page.
    """
    from hrp_lab.bench.record_store import load_all

    html = _is_html(options)
    records = load_all(options.records)
    if options.metric and not any(options.metric in record.metrics for record in records):
        known = sorted({name for record in records for name in record.metrics})
        raise ValueError(f"`--metric` must be one of {known}, got {options.metric!r}")
    arms = sorted({record.arm for record in records})
    if options.control not in (_CONTROL, *arms):  # a page without the default one is a page
        raise ValueError(f"`--control` must be one of {arms}, got {options.control!r}")
    shown = _write_html(options, records) if html else _write_markdown(options, records)
    print(f"wrote {options.out} ({len(records)} records, {shown})")
    return 0


def _is_html(options: argparse.Namespace) -> bool:
    """Tell the kind of page by its name, and check that all options are of that kind."""
    suffix = options.out.suffix
    if suffix not in (".html", ".md"):
        raise ValueError(f"`--out` must end in .html or .md, got '{options.out}'")
    for name, given, wanted in (
        ("--spectrum", options.spectrum, ".html"), ("--reading", options.reading, ".md"),
    ):  # fmt: skip
        if given and suffix != wanted:
            raise ValueError(f"`{name}` needs `--out` to end in {wanted}, got '{options.out}'")
    return bool(suffix == ".html")


def _write_html(options: argparse.Namespace, records: Sequence[Record]) -> str:
    from hrp.files import write_text
    from hrp.report.html import check_page
    from hrp.spectra.spectrum import Spectrum
    from hrp_lab.report.sections import GENERATOR, report_page

    check_page(options.out, GENERATOR)
    spectra = {str(folder): Spectrum.load(folder) for folder in options.spectrum}
    text = report_page(
        records, spectra, options.title or "HRP benchmark", options.metric, options.control
    )
    write_text(options.out, text)
    return f"{len(spectra)} spectra"


def _write_markdown(options: argparse.Namespace, records: Sequence[Record]) -> str:
    from hrp_lab.report.markdown import write_page

    reading = options.reading.read_text(encoding="utf-8") if options.reading else ""
    figures = write_page(
        records, options.out, options.title or "Results", options.metric, options.control, reading
    )
    return f"{figures} figures"
