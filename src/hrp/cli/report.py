"""``hrp report`` writes a self-contained HTML page of runs and spectra."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from hrp.cli.failures import reported
from hrp.files import digest, read_object, write_text

PAGE = "report.html"
EPILOG = """examples:
  hrp report runs/adapter
  hrp report runs/adapter runs/lora --out both.html
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hrp report",
        description="Write one self-contained HTML page of what runs did: loss of preheating and\n"
        "of fine-tuning on one axis, what the cut kept of each module, effective ranks, cost,\n"
        "settings, provenance; of several runs side by side. Records of a benchmark have a page\n"
        "of their own: `hrp-lab bench report`.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="folder of `hrp sft`, `finetune`, `preheat` or `demo`, or of a spectrum",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"the page to write (default: RUN/{PAGE}; RUN-{PAGE} beside the folder of a spectrum, "
        f"which holds nothing else; {PAGE} of several runs)",
    )
    parser.add_argument("--title", help="of the page (default: from the name of the run)")
    return parser


def main(argv: list[str]) -> int:
    """Run ``hrp report`` and return the exit status."""
    options = _parser().parse_args(argv)
    return reported("report", lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    out = options.out or _default_place(options.runs)
    write_page({str(run): run for run in options.runs}, out, options.title)
    several = f" ({len(options.runs)} runs)" if len(options.runs) > 1 else ""
    print(f"wrote {out}{several}")
    return 0


def write_page(runs: Mapping[str, Path], out: Path, title: str | None = None) -> None:
    """Write the page of ``runs``, folders by the names to show, into the file ``out``.

    Raises:
        ValueError: a folder holds nothing to show.
        SpectrumFormatError: a spectrum is damaged.
        OSError: the page cannot be written, or another program's file is there.
    """
    from hrp.report.html import check_page
    from hrp.report.run_folder import read_run  # these draw, which is slow to import
    from hrp.report.run_page import GENERATOR, run_page

    check_page(out, GENERATOR)
    names = ", ".join(Path(name).resolve().name for name in runs)
    read = {name: read_run(folder) for name, folder in runs.items()}
    write_text(out, run_page(read, title or f"HRP: {names}"))
    _record_in_demo(out)


def write_own_page(folder: Path, name: str | None = None) -> Path | None:
    """Write a finished run's page into its folder and return its path; ``name`` is shown for it.

    Returns None, and says why, where that fails: the run is finished all the same.
    """
    if find_spec("matplotlib") is None:
        return None
    try:
        out = _default_place([folder])
        write_page({name or str(folder): folder}, out)
    except Exception as error:  # a page is not worth a finished training's exit status
        print(f"no page was written: {error}; `hrp report {folder}` tries again", file=sys.stderr)
        return None
    return out


def _default_place(runs: Sequence[Path]) -> Path:
    """Return where the page goes."""
    from hrp.spectra.artefact import PROVENANCE_FILE

    out = runs[0] / PAGE
    if len(runs) > 1:
        out = Path(PAGE)
    elif (runs[0] / PROVENANCE_FILE).is_file():
        folder = runs[0].resolve()
        out = folder.parent / f"{folder.name}-{PAGE}"
    return out


def _record_in_demo(out: Path) -> None:
    """Enter the page in the record of a demo, by which its folder is known for a demo's."""
    record = out.parent / "results.json"
    content = read_object(record) or {}
    if out.name == PAGE and isinstance(content.get("files"), dict):
        content["files"][out.name] = [digest(out)]
        write_text(record, json.dumps(content, indent=2) + "\n")
