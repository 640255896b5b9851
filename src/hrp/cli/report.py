"""``hrp report`` writes a self-contained HTML page from spectra."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hrp.errors import SpectrumFormatError
from hrp.files import write_text
from hrp.spectra.spectrum import Spectrum

EPILOG = """example:
  hrp report runs/spectrum runs/other --out report.html
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp report",
        description="Write one self-contained HTML page from spectra: ranks, energy, loss\n"
        "while preheating, provenance, and how far several agree with the first. Records of a\n"
        "benchmark have a page of their own: `hrp-lab bench report`.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "spectra", nargs="+", type=Path, metavar="DIR", help="folder of a spectrum to show"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page to write")
    parser.add_argument("--title", default="Spectra", help="of the page (default: %(default)s)")
    return parser


def main(argv: list[str]) -> int:
    """Run ``hrp report`` and return the exit status."""
    options = _parser().parse_args(argv)
    from hrp.report.spectrum_page import spectrum_page  # draws, which is slow to import

    try:
        spectra = {str(folder): Spectrum.load(folder) for folder in options.spectra}
        write_text(options.out, spectrum_page(spectra, options.title))
    except (OSError, SpectrumFormatError, ValueError) as error:
        print(f"hrp report: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out} ({len(spectra)} spectra)")
    return 0
