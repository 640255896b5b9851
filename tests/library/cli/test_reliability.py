"""The page about faults says what the tests show, and nothing else."""

from __future__ import annotations

from helpers.faults import HEADER, PAGE, page, rows


def test_the_table_of_faults_is_made_of_the_tests():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "python tests/helpers/faults.py writes it anew"


def test_every_row_of_the_page_comes_from_a_test():
    text = PAGE.read_text(encoding="utf-8")
    shown = [f"{line}\n" for line in text.splitlines() if line.startswith("| ")]
    shown = [line for line in shown if line not in HEADER]
    assert sorted(shown) == sorted(row for section in rows().values() for row in section)
    assert len(shown) > 40
