import doctest
import re
from xml.parsers import expat

import matplotlib
import pytest

import hrp.report.figures
from hrp.report.figures import INK, colour, drawn, save, to_svg


@pytest.fixture
def figure():
    with drawn() as figure:
        axes = figure.add_subplot()
        for index, label in enumerate(("first", "second")):
            axes.plot([1, 2, 3], [index, 2, 1], marker="o", label=label, **colour(index))
        figure.legend(loc="outside lower center")
        return figure


def test_the_doctests_hold():
    assert doctest.testmod(hrp.report.figures).failed == 0


def test_an_inline_svg_takes_the_page_s_colour_and_loads_nothing(figure):
    svg = to_svg(figure, "first", 'a "sweep" <b>')
    expat.ParserCreate().Parse(svg, True)
    assert "currentColor" in svg
    assert INK not in svg
    assert 'aria-label="a &quot;sweep&quot; &lt;b&gt;"' in svg
    assert not re.search(r"http|<!--|<script|<metadata|<image", svg)


def test_ids_of_two_figures_never_meet(figure):
    svgs = [to_svg(figure, name, "") for name in ("first", "second")]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, known in zip(svgs, ids, strict=True):
        targets = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert targets
        assert targets <= known


def test_the_same_figure_is_the_same_text(figure):
    assert to_svg(figure, "x", "") == to_svg(figure, "x", "")


def test_a_saved_figure_is_whole_and_nothing_else_is_left(tmp_path, figure):
    path = save(figure, tmp_path / "new" / "figure.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]


def test_more_series_than_colours_stay_apart():
    assert len({tuple(colour(index).values()) for index in range(28)}) == 28


def test_drawing_leaves_matplotlib_s_settings_alone():
    before = dict(matplotlib.rcParams)
    with drawn() as figure:
        figure.add_subplot()
    to_svg(figure, "x", "")
    assert dict(matplotlib.rcParams) == before
