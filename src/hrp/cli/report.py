"""``hrp report``: one self-contained HTML page from records and spectra."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hrp.errors import SpectrumFormatError
from hrp.spectrum import Spectrum

EPILOG = """example:
  hrp report experiments/results/gsm8k-core --spectrum runs/spectrum --out report.html
"""
_CONTROL = "lora"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp report",
        description="Write one self-contained HTML page from a benchmark's records and from\n"
        "spectra: starts with spread and significance, loss curves, costs, provenance.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "records", nargs="?", type=Path, help="folder of records (JSON, sub-folders included)"
    )
    parser.add_argument(
        "--spectrum",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a spectrum to show; give it again for more, compared with the first",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    parser.add_argument(
        "--title", default="HRP benchmark", help="of the page (default: %(default)s)"
    )
    parser.add_argument("--metric", help="to judge by (default: each task's own)")
    parser.add_argument("--control", default=_CONTROL, help="start to compare with (default: lora)")
    return parser


def main(argv: list[str]) -> int:
    """Run ``hrp report``; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.records is None and not options.spectrum:
        parser.error("give a folder of records, or --spectrum DIR")
    # Slow to import, and not needed to say that an option is wrong.
    from hrp.bench.record import RecordError, load_records, write_whole
    from hrp.report.flat_records import is_flat, load_flat
    from hrp.report.pages import report_page

    try:
        records = []
        if options.records:
            load = load_flat if is_flat(options.records) else load_records
            records = load(options.records)
        if options.metric and not any(options.metric in one.metrics for one in records):
            known = sorted({name for one in records for name in one.metrics})
            raise ValueError(f"`--metric` must be one of {known}, got {options.metric!r}")
        arms = sorted({one.run.arm for one in records})
        if options.control not in (_CONTROL, *arms):  # a page without the default one is a page
            raise ValueError(f"`--control` must be one of {arms}, got {options.control!r}")
        spectra = {str(folder): Spectrum.load(folder) for folder in options.spectrum}
        text = report_page(records, spectra, options.title, options.metric, options.control)
        write_whole(options.out, text)
    except (OSError, RecordError, SpectrumFormatError, ValueError) as error:
        print(f"hrp report: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out} ({len(records)} records, {len(spectra)} spectra)")
    return 0
