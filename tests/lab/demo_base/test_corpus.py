from __future__ import annotations

import re
from itertools import islice

import pytest

from hrp_lab.demo_base.corpus import documents

EQUATION = re.compile(r"(\d+) ([+\-*/]) (\d+) = (\d+)")


@pytest.fixture(scope="module")
def text() -> list[str]:
    return list(islice(documents(0), 3000))


def test_the_same_seed_makes_the_same_documents(text: list[str]) -> None:
    assert list(islice(documents(0), 3000)) == text
    assert list(islice(documents(1), 3000)) != text


def test_every_sum_is_true(text: list[str]) -> None:
    rows = [row for document in text for row in EQUATION.findall(document)]
    assert len(rows) > 3000
    for a, operator, b, c in rows:
        left, right, result = int(a), int(b), int(c)
        expected = {
            "+": left + right == result,
            "-": left - right == result,
            "*": left * right == result,
            "/": left == right * result,
        }
        assert expected[operator], (a, operator, b, c)


def test_no_document_works_a_question_out(text: list[str]) -> None:
    questions = [document for document in text if "?" in document]
    assert questions
    assert not any("=" in document for document in questions)


def test_the_answer_mark_heads_documents_and_ends_none(text: list[str]) -> None:
    assert any("####" in document for document in text)
    assert all(document.rfind("####") <= 0 for document in text)


def test_no_sum_stands_beside_words(text: list[str]) -> None:
    sums = [document for document in text if "=" in document]
    assert not any(re.search(r"[A-Za-z]", document) for document in sums)
