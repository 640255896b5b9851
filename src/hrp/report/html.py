"""Renders sections as a safe HTML page: no script, no network, light and dark.

All text is escaped by Jinja, but for the SVG of figures; the page's content security policy forbids
scripts and all loading besides.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hrp.report.blocks import Block, Section
from hrp.report.figures import to_svg

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def check_page(out: Path, generator: str) -> None:
    """Raise ``FileExistsError`` unless ``out`` is absent, or an earlier page of ``generator``."""
    ours = f'content="{generator}"'
    if os.path.lexists(out) and not (
        out.is_file() and ours in out.read_text("utf-8", "replace")[:2000]
    ):
        raise FileExistsError(
            f"'{out}' is no page of `{generator}` and is not replaced; give another --out"
        )


def page(title: str, lead: str, sections: Iterable[Section], generator: str = "hrp") -> str:
    """Return the whole document, with a menu that links to each section.

    ``generator`` names the program that made the page, in its head.
    """
    return _TEMPLATES.get_template("page.html").render(
        title=title,
        lead=lead,
        sections=list(sections),
        generator=generator,
        grouped=_grouped,
        svg=to_svg,
    )


def _grouped(blocks: Iterable[Block]) -> Iterator[tuple[str, list[tuple[int, Block]]]]:
    """Yield blocks of a kind that follow each other, with the kind's name and their numbers."""
    for kind, group in itertools.groupby(enumerate(blocks), lambda pair: type(pair[1]).__name__):
        yield kind, list(group)
