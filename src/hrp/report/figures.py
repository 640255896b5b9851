"""Gives all figures their look, and puts them into files and pages."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from hrp.files import write_file

# The colour of text, axes and the control's lines; in a page it becomes that of the page's text.
INK = "#101418"
# Colour-blind readers can tell these apart, and they are visible on white and on near-black.
PALETTE = ("#2b7bba", "#d55e00", "#009e73", "#b8860b", "#c2609a", "#7a68c9", "#8b6f47")
WIDTH = 5.2  # inches: the width of a phone at 72 dots an inch
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "hrp",
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@contextmanager
def drawn(height: float = 3.4) -> Iterator[Figure]:
    """Yield an empty figure to draw on, in the project's style."""
    with _styled():
        yield Figure(figsize=(WIDTH, height), layout="constrained")


@contextmanager
def _styled() -> Iterator[None]:
    # Names may hold any script; a box in a label is no reason to fail.
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def plain(text: str, longest: int = 40) -> str:
    """Return text that matplotlib shows as it is: no mathematics, a single line, shortened.

    >>> plain("cost $x$ of `a`"), plain("abcdefghij", longest=7)
    ('cost \\\\$x\\\\$ of `a`', 'abc…hij')
    """
    one_line = "".join(char if char.isprintable() else " " for char in text)
    if len(one_line) > longest:
        half = (longest - 1) // 2
        one_line = one_line[:half] + "…" + one_line[-half:]
    return one_line.replace("$", r"\$")


def colour(index: int) -> dict[str, Any]:
    """Return the ``index``-th series' colour and dashes, which change when colours run out."""
    style = ("-", "--", ":", "-.")[index // len(PALETTE) % 4]
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": style}


def heat_map(
    figure: Figure,
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    texts: np.ndarray | None = None,
    **shades: Any,
) -> Any:
    """Draw ``values`` (rows, columns), with NaN as empty cells, and return the axes.

    ``texts`` are written into the cells where there is room, by default the numbers; ``shades`` are
    matplotlib's ``cmap`` and ``norm``.
    """
    axes = figure.add_subplot()
    masked = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(masked, edgecolors="face", **{"cmap": "viridis", **shades})
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_yticks(np.arange(len(rows)) + 0.5, [plain(row, 30) for row in rows])
    slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    horizontal = sum(map(len, columns)) < 45
    names = [plain(column, 30) for column in columns]
    axes.set_xticks(np.arange(len(columns)) + 0.5, names, **({} if horizontal else slanted))
    axes.tick_params(length=0)
    figure.colorbar(mesh, ax=axes, label=label)
    if len(columns) <= 10 and len(rows) <= 36:
        _write_cells(axes, mesh, values, _numbers(values) if texts is None else texts)
    return axes


def _numbers(values: np.ndarray) -> np.ndarray:
    high = np.nanmax(values)
    digits = 0 if high >= 100 else 1 if high >= 10 else 3 if high < 5 else 2
    return np.vectorize(lambda value: f"{value:.{digits}f}", otypes=[object])(values)


def _write_cells(axes: Any, mesh: Any, values: np.ndarray, texts: np.ndarray) -> None:
    """Write black on bright cells and white on dark ones, by their luminance."""
    for row, column in np.argwhere(np.isfinite(values)):
        shade = mesh.cmap(mesh.norm(values[row, column]))[:3]
        bright = float(np.dot(shade, (0.299, 0.587, 0.114))) > 0.55
        centred = {"ha": "center", "va": "center", "color": "#000000" if bright else "#ffffff"}
        axes.text(column + 0.5, row + 0.5, texts[row, column], fontsize=7, **centred)


def to_svg(figure: Figure, name: str, description: str) -> Markup:
    """Return an inline ``<svg>`` that takes the page's text colour.

    ``name`` (letters, digits, dashes) keeps the ids of several figures in one page apart.
    """
    buffer = io.StringIO()
    with _styled():
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1" OPENING>', svg, count=1)
    label = f'role="img" aria-label="{html.escape(description)}"'
    return Markup(svg.replace("OPENING", label, 1).strip())  # noqa: S704  # its text is escaped


def save(figure: Figure, path: Path) -> Path:
    """Write ``figure`` to ``path`` as its suffix says (.png, .svg, .pdf), on white."""
    with _styled():
        return write_file(path, lambda staging: figure.savefig(staging, dpi=160, facecolor="white"))
