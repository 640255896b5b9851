"""The content of a report as plain data, which HTML and Markdown pages are rendered from."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from hrp.report.table import Table


@dataclass(frozen=True)
class Sentences:
    """A list of sentences."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class TableBlock:
    """A table, folded under ``summary`` where there is one."""

    table: Table
    summary: str = ""


@dataclass(frozen=True)
class FigureBlock:
    """A figure with its caption, which has no full stop; its file, if any, is called ``name``."""

    figure: Figure
    name: str
    caption: str


Block = Sentences | Heading | TableBlock | FigureBlock


@dataclass(frozen=True)
class Section:
    """A part of a page, with a title that a menu can link to."""

    title: str
    blocks: tuple[Block, ...]
