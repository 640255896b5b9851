"""Describes a report as plain data, which HTML and Markdown pages are rendered from."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from hrp.report.table import Table


@dataclass(frozen=True)
class Sentences:
    """Holds a list of sentences."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    """Holds a heading within a section."""

    text: str


@dataclass(frozen=True)
class TableBlock:
    """Holds a table, folded under ``summary`` where there is one."""

    table: Table
    summary: str = ""


@dataclass(frozen=True)
class FigureBlock:
    """Holds a figure and its caption, without a full stop; its file is called ``name``."""

    figure: Figure
    name: str
    caption: str


Block = Sentences | Heading | TableBlock | FigureBlock


@dataclass(frozen=True)
class Section:
    """Holds a part of a page, with a title that a menu can link to."""

    title: str
    blocks: tuple[Block, ...]
