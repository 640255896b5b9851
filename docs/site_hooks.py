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
    if _is_of_results(page):
        page.meta["hide"] = ["toc"]


def on_page_content(content: str, page: Any, **_: Any) -> str:
    """Put MathML in place of the formulas that arithmatex has marked; mark captions of results."""
    if _is_of_results(page):
        content = content.replace("</table>\n<p>", '</table>\n<p class="caption">')
    return _FORMULA.sub(lambda found: mathml(*found.groups()), content)


def _is_of_results(page: Any) -> bool:
    return page.file.src_uri.startswith(("results", "ablation"))


def mathml(tag: str, formula: str) -> str:
    """Return the formula, whose characters may be escaped as in HTML, within ``tag``."""
    kind = "inline" if tag == "span" else "block"
    return f'<{tag} class="formula">{convert(html.unescape(formula), display=kind)}</{tag}>'
