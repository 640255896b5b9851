"""Sets formulas as MathML while the site is built, and gives pages of tables their full width.

MathML needs neither JavaScript nor a font from another host: the site reads the same offline.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Hide the table of contents beside tables of results, which need its room."""
    if page.file.src_uri.startswith(("results", "ablation")):
        page.meta["hide"] = ["toc"]


def on_page_content(content: str, **_: Any) -> str:
    """Put MathML in the place of the formulas that ``pymdownx.arithmatex`` has marked."""
    return _FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    tag, formula = found.groups()
    kind = "inline" if tag == "span" else "block"
    return f'<{tag} class="formula">{convert(html.unescape(formula), display=kind)}</{tag}>'
