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
from hrp.spectra.spectrum import Spectrum
from hrp.validation import check_integer

EPILOG = """examples:
  hrp inspect runs/spectrum
  hrp inspect runs/spectrum --compare runs/other --rank 8 --out runs/figures
  hrp inspect runs/spectrum --json | jq '.modules[].effective_rank.entropy'
"""


def _rule() -> str:
    from hrp.report.shares import RULE

    return textwrap.fill(f"The rule (of thumb): {RULE}.", width=90)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp inspect",
        description="Print a table of a spectrum's modules (shape, rank, effective ranks, share\n"
        "that few directions keep of the energy, and in the metric of the loss), a recommended\n"
        "rank and preheat_rank R, and the loss per preheating step.",
        epilog=f"{_rule()}\n\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("spectrum", type=Path, help="folder written by `hrp preheat`")
    parser.add_argument(
        "--compare", type=Path, metavar="DIR", help="another spectrum: how far both agree"
    )
    parser.add_argument(
        "--rank", type=int, default=8, help="with --compare: how many directions (default: 8)"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write figures (PNG) to")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
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
    facts = _facts(spectrum, other, options.rank)
    written = []
    if options.out:
        reference = (str(options.compare), other) if other is not None else None
        written = _write_figures(spectrum, reference, options.rank, options.out)
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(map(_shown, _lines(spectrum, facts))))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _facts(spectrum: Spectrum, other: Spectrum | None, rank: int) -> dict[str, Any]:
    from hrp.report.shares import recommend
    from hrp.report.spectrum_views import SIDES, alignment, common_rank, module_facts

    facts: dict[str, Any] = {"provenance": spectrum.provenance, "modules": module_facts(spectrum)}
    advice = recommend(spectrum)
    facts["recommendation"] = None if advice is None else asdict(advice)
    if other is not None:
        rank = common_rank(spectrum, other, rank)
        facts["alignment"] = {"rank": rank}
        facts["alignment"] |= {side: alignment(spectrum, other, rank, side) for side in SIDES}
    return facts


def _lines(spectrum: Spectrum, facts: dict[str, Any]) -> Iterator[str]:
    from hrp.report.shares import recommend
    from hrp.report.spectrum_views import SIDES, spectrum_table

    table = spectrum_table(spectrum)
    yield from _columns([table.header, *table.rows])
    yield f"\n{table.caption}"
    if advice := recommend(spectrum):
        yield f"\n{advice.sentence}\n"
    for key, value in spectrum.provenance.items():
        if key != "losses":
            yield f"{key}: {json.dumps(value)}"
    if losses := spectrum.provenance.get("losses"):
        yield "\nloss per preheating step:"
        for start in range(0, len(losses), 10):
            row = " ".join(f"{loss:8.4f}" for loss in losses[start : start + 10])
            yield f"{start + 1:5d}: {row}"
    if "alignment" in facts:
        aligned = facts["alignment"]
        rank = aligned["rank"]
        yield f"\nalignment at rank {rank} (mean squared cosine of the principal angles):"
        rows = [(n, *(f"{aligned[side][n]:.3f}" for side in SIDES)) for n in aligned["U"]]
        yield from _columns([("module", *SIDES), *rows])


def _shown(line: str) -> str:
    return "\n".join(map(printable, line.split("\n")))


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        yield "  ".join([name.ljust(widths[0]), *padded])


def _write_figures(
    spectrum: Spectrum, reference: tuple[str, Spectrum] | None, rank: int, folder: Path
) -> list[Path]:
    from hrp.report.figures import save  # draws, which is slow to import
    from hrp.report.spectrum_views import spectrum_figures

    figures = spectrum_figures(spectrum, reference, rank)
    return [save(block.figure, folder / f"{block.name}.png") for block in figures]
