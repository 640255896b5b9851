"""Renders sections as a safe HTML page: no script, no network, light and dark.

Text becomes HTML only through `tag`, which escapes whatever is not `Html` already; the page's
content security policy forbids scripts and all loading besides.
"""

from __future__ import annotations

import html
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from hrp.report.blocks import Block, FigureBlock, Heading, Section, Sentences, TableBlock
from hrp.report.figures import to_svg
from hrp.report.table import Table

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


class Html(str):
    """Marks a string that is HTML already: built by `tag`, or the SVG of a figure."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str) -> Html:
    """Return an element; text children and attribute values are escaped, `Html` is kept as it is.

    A trailing underscore lets Python's words be attributes (``class_``).

    >>> tag("b", "1 < 2", class_="x")
    '<b class="x">1 &lt; 2</b>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
    )
    if name == "meta":  # has no end
        return Html(f"<{name}{given}>")
    inner = "".join(child if isinstance(child, Html) else html.escape(child) for child in children)
    return Html(f"<{name}{given}>{inner}</{name}>")


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
    numbered = [(f"part-{number}", section) for number, section in enumerate(sections)]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name_="generator", content=generator),
        tag("title", title),
        tag("style", Html(_STYLE)),
    ]
    menu = [tag("li", tag("a", part.title, href=f"#{name}")) for name, part in numbered]
    body = [tag("h1", title), tag("p", lead), tag("nav", tag("ul", *menu))]
    body += [_section(name, section) for name, section in numbered]
    document = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _section(identifier: str, section: Section) -> Html:
    """Return the section, with figures that follow each other side by side."""
    rendered = [
        (isinstance(block, FigureBlock), _rendered(block, f"{identifier}-{number}"))
        for number, block in enumerate(section.blocks)
    ]
    content: list[Html] = []
    for figures, group in itertools.groupby(rendered, key=lambda pair: pair[0]):
        parts = [part for _, part in group]
        content += [tag("div", *parts, class_="figures")] if figures else parts
    return tag("section", tag("h2", section.title), *content, id=identifier)


def _rendered(block: Block, identifier: str) -> Html:
    match block:
        case Sentences(lines):
            return tag("ul", *(tag("li", line) for line in lines))
        case Heading(text):
            return tag("h3", text)
        case FigureBlock(figure, _, text):
            caption = f"{text}."
            drawing = Html(to_svg(figure, identifier, caption))
            return tag("figure", drawing, tag("figcaption", caption))
        case TableBlock(content, ""):
            return _table(content)
        case TableBlock(content, summary):
            return tag("details", tag("summary", summary), _table(content))


def _table(content: Table) -> Html:
    """Return a table that scrolls sideways in itself, its caption below."""
    head = tag("tr", *(tag("th", name, scope="col") for name in content.header))
    rows = [tag("tr", *map(_cell, row)) for row in content.rows]
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    caption = tag("p", content.caption, class_="caption")
    return Html(tag("div", table, class_="scroll", tabindex="0") + caption)


def _cell(text: str) -> Html:
    if text in ("better", "worse"):
        return tag("td", text, class_=text)
    return tag("td", text, class_="long") if len(text) > 40 else tag("td", text)
