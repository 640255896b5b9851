"""Writes records as a Markdown page with figures beside it, such as ``docs/results.md``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from hrp.files import write_file, write_text
from hrp.report.blocks import Block, FigureBlock, Heading, Sentences, TableBlock
from hrp.report.figures import INK
from hrp.report.table import markdown_text
from hrp_lab.bench.record import Record
from hrp_lab.bench.stats import CONTROL
from hrp_lab.report.sections import sections

MID_TONE = "#76808c"
"""Its contrast is at least 3.9 on white and on the near-black of the site's dark theme."""
_GRID_ALPHA = 0.3
_DPI = 160
_LONG_CAPTION = 300  # letters; longer ones are folded


def write_page(
    records: Sequence[Record],
    out: Path,
    title: str = "Results",
    metric: str | None = None,
    control: str = CONTROL,
    reading: str = "",
    figures_folder: Path | None = None,
    drawn: tuple[str, ...] = ("",),
) -> int:
    """Write the page ``out`` and its figures, by default in the folder ``figures`` beside it.

    Every table is followed by the run ids behind it, so that each number can be traced. ``reading``
    is what a person makes of them, in Markdown; it stands first. Only figures whose names end in
    one of ``drawn`` are shown, such as "sweep" or "losses"; by default all. Returns their number.

    Raises ``ValueError`` without records, and `RecordError` where two are of the same run; then
    nothing is written.
    """
    if not records:
        raise ValueError("`records` must not be empty")
    folder = figures_folder or out.parent / "figures"
    link = os.path.relpath(folder, out.parent)
    text = [f"# {title}\n", *[f"{reading.strip()}\n"] * bool(reading)]
    figures = []
    for section in sections(records, metric, control):
        blocks = [
            block
            for block in section.blocks
            if not isinstance(block, FigureBlock) or block.name.endswith(drawn)
        ]
        rendered = [_rendered(block, link) for block in blocks]
        text += [f"## {markdown_text(section.title)}\n", *rendered]
        figures += [block for block in blocks if isinstance(block, FigureBlock)]
    for block in figures:
        save_themed(block.figure, folder / _file_name(block))
    write_text(out, "\n".join(text) + "\n")
    return len(figures)


def _rendered(block: Block, figures: str) -> str:
    """Return the block's Markdown, with a line feed at its end."""
    match block:
        case Sentences(lines):
            return "".join(f"- {markdown_text(line)}\n" for line in lines)
        case Heading(text):
            return f"### {markdown_text(text)}\n"
        case FigureBlock(_, _, caption):
            said = markdown_text(caption)
            return f"![{said}]({figures}/{_file_name(block)})\n\n{said}.\n"
        case TableBlock(table, "") if len(table.caption) > _LONG_CAPTION:
            rows = replace(table, caption="").markdown().rstrip()
            said = f"{markdown_text(table.caption)}\n"
            return f"{rows}\n\n{_folded('How to read this table', said)}"
        case TableBlock(table, ""):
            return table.markdown()
        case TableBlock(table, summary):
            return _folded(summary, table.markdown())


def _folded(summary: str, text: str) -> str:
    """Return Markdown that opens at a click; mkdocs reads it as Markdown only if told so."""
    return f'<details markdown="1">\n<summary>{escape(summary)}</summary>\n\n{text}\n</details>\n'


def _file_name(block: FigureBlock) -> str:
    return re.sub(r"[^A-Za-z0-9+-]+", "-", block.name) + ".png"


def save_themed(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path`` without a background, what was in ink in `MID_TONE`.

    The figure itself is changed: it is drawn in that tone from then on.
    """
    for axes in figure.axes:
        axes.tick_params(colors=MID_TONE, grid_color=MID_TONE, grid_alpha=_GRID_ALPHA)
    for artist in figure.findobj():
        _retone(artist)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        return write_file(path, lambda staging: figure.savefig(staging, dpi=_DPI, transparent=True))


def _retone(artist: Artist) -> None:
    match artist:
        case Text() | Line2D():
            if _is_ink(artist.get_color()):
                artist.set_color(MID_TONE)
        case Patch():
            if _is_ink(artist.get_edgecolor()):
                artist.set_edgecolor(MID_TONE)
        case Collection():  # bands, points, the bars of intervals
            for name in ("facecolor", "edgecolor"):
                colours = getattr(artist, f"get_{name}")()
                if len(colours) and all(map(_is_ink, colours)):
                    alpha = to_rgba(colours[0])[3]
                    getattr(artist, f"set_{name}")(to_rgba(MID_TONE, alpha))


def _is_ink(colour: Any) -> bool:
    return to_rgba(colour)[:3] == to_rgba(INK)[:3]
