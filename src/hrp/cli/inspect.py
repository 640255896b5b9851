"""``hrp inspect`` shows what a spectrum holds, as a table, as JSON, as figures."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hrp.cli.failures import printable, reported
from hrp.cli.help_page import Help
from hrp.report.figures import save
from hrp.report.shares import RULE, Recommendation, recommend
from hrp.report.spectrum_views import (
    SIDES,
    alignment,
    common_rank,
    module_facts,
    spectrum_figures,
    spectrum_table,
)
from hrp.spectra.spectrum import Spectrum
from hrp.validation import check_integer

EPILOG = f"""{textwrap.fill(f"The rule (of thumb): {RULE}.", width=90)}

examples:
  hrp inspect runs/spectrum
  hrp inspect runs/spectrum --compare runs/other --rank 8 --out runs/figures
  hrp inspect runs/spectrum --json | jq '.modules[].effective_rank.entropy'
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp inspect",
        description="Print a table of a spectrum's modules (shape, rank, effective ranks, share\n"
        "that few directions keep of the energy, and in the metric of the loss), a recommended\n"
        "rank and preheat_rank R, and the loss per preheating step.",
        epilog=EPILOG,
        formatter_class=Help,
    )
    add = parser.add_argument
    add("spectrum", type=Path, help="folder written by `hrp preheat`")
    add("--compare", type=Path, metavar="DIR", help="another spectrum: how far both agree")
    add("--rank", type=int, default=8, help="with --compare: how many directions")
    add("--out", type=Path, metavar="DIR", help="folder to write figures (PNG) to")
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: list[str]) -> int:
    """Run ``hrp inspect`` and return the exit status."""
    options = _parser().parse_args(argv)
    return reported("inspect", lambda: _inspect(options))


def _inspect(options: argparse.Namespace) -> int:
    check_integer("rank", options.rank, minimum=1)
    if options.out:
        from hrp.cli.outputs import check_place

        check_place(options.out, "--out")
    spectrum = Spectrum.load(options.spectrum)
    other = Spectrum.load(options.compare) if options.compare else None
    advice = recommend(spectrum)
    facts: dict[str, Any] = {
        "provenance": spectrum.provenance,
        "modules": module_facts(spectrum),
        "recommendation": None if advice is None else asdict(advice),
    }
    if other is not None:
        rank = common_rank(spectrum, other, options.rank)
        aligned = {side: alignment(spectrum, other, rank, side) for side in SIDES}
        facts["alignment"] = {"rank": rank} | aligned
    written = []
    if options.out:
        reference = None if other is None else (str(options.compare), other)
        for block in spectrum_figures(spectrum, reference, options.rank):
            written.append(save(block.figure, options.out / f"{block.name}.png"))
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        for line in _lines(spectrum, advice, facts.get("alignment")):
            print("\n".join(map(printable, line.split("\n"))))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _lines(
    spectrum: Spectrum, advice: Recommendation | None, aligned: dict[str, Any] | None
) -> Iterator[str]:
    table = spectrum_table(spectrum)
    yield from _columns([table.header, *table.rows])
    yield f"\n{table.caption}"
    if advice:
        yield f"\n{advice.sentence}\n"
    for key, value in spectrum.provenance.items():
        if key != "losses":
            yield f"{key}: {json.dumps(value)}"
    if losses := spectrum.provenance.get("losses"):
        yield "\nloss per preheating step:"
        for start in range(0, len(losses), 10):
            row = " ".join(f"{loss:8.4f}" for loss in losses[start : start + 10])
            yield f"{start + 1:5d}: {row}"
    if aligned:
        yield (
            f"\nalignment at rank {aligned['rank']} (mean squared cosine of the principal angles):"
        )
        rows = [(n, *(f"{aligned[side][n]:.3f}" for side in SIDES)) for n in aligned["U"]]
        yield from _columns([("module", *SIDES), *rows])


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *padded])
