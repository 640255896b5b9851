"""Saves figures that can be read on a light and on a dark page."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from hrp.files import write_file
from hrp.report.figures import INK

MID_TONE = "#76808c"
"""Its contrast is at least 3.9 on white and on the near-black of the site's dark theme."""
_GRID_ALPHA = 0.3
_DPI = 160


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
