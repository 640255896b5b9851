import dataclasses
import re

from hrp.report.blocks import FigureBlock, Heading, Section, Sentences, TableBlock
from hrp.report.figures import drawn
from hrp.report.html import page
from hrp.report.table import Table

TABLE = Table("<c>", ("<h>",), (("<r>",), ("better",)))


def figure_block(caption):
    with drawn() as figure:
        figure.add_subplot().plot([1, 2], [2, 1])
        return FigureBlock(figure, "name", caption)


def body_of(*blocks):
    return page("title", "lead", [Section("<s>", blocks)]).partition("<body>")[2]


def test_text_becomes_html_only_escaped():
    assert 'content="&#34;&gt;"' in page("title", "lead", [], '">')
    figure = figure_block("<f>")
    body = body_of(Sentences(("<l>",)), Heading("<t>"), TableBlock(TABLE, "<d>"), figure)
    for mark in ("<s>", "<l>", "<t>", "<d>", "<c>", "<h>", "<r>", "<f>"):
        assert mark not in body
        assert mark.replace("<", "&lt;").replace(">", "&gt;") in body
    assert '<td class="better">better</td>' in body


def test_a_table_is_folded_where_it_has_a_summary():
    assert "<details>" not in body_of(TableBlock(TABLE))
    assert "<details><summary>All</summary><div" in body_of(TableBlock(TABLE, "All"))


def test_figures_that_follow_each_other_stand_side_by_side_with_ids_of_their_own():
    figure = figure_block("caption")
    body = body_of(figure, figure, TableBlock(TABLE), dataclasses.replace(figure))
    groups = body.split('<div class="figures">')[1:]
    assert [group.count("<figure>") for group in groups] == [2, 1]
    ids = re.findall(r'\bid="([^"]+)"', body)
    assert len(ids) == len(set(ids)) > 3


def test_the_menu_links_to_every_section():
    text = page("title", "lead", [Section("first", ()), Section("second", ())])
    assert re.findall(r'href="#([^"]+)">(\w+)', text) == [("part-0", "first"), ("part-1", "second")]
    assert re.findall(r'<section id="([^"]+)"><h2>(\w+)', text) == [
        ("part-0", "first"),
        ("part-1", "second"),
    ]
