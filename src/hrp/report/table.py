"""Describes tables as plain rows of text under a header, and writes their Markdown."""

from __future__ import annotations

import math
from dataclasses import dataclass

DASH = "—"  # stands where there is no value


@dataclass(frozen=True)
class Table:
    """Holds a table of text, with a caption that says how to read it."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return a Markdown table, the caption below it; names cannot break its cells or lines."""
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        table = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]
        return "\n".join([*table, "", markdown_text(self.caption), ""])


def markdown_text(text: str) -> str:
    """Return text on one line that means itself in Markdown: no mark-up, HTML, link or cell."""
    one_line = " ".join(text.split())
    for mark in "\\|`*_[]":
        one_line = one_line.replace(mark, "\\" + mark)
    return one_line.replace("<", "&lt;").replace(">", "&gt;")


def number(value: float, digits: int = 4) -> str:
    """Return a value with ``digits`` decimals below 100, as many digits above; NaN as a dash.

    >>> number(1.38671), number(12345.678), number(float("nan"))
    ('1.3867', '1.235e+04', '—')
    """
    if not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.{digits}g}"
