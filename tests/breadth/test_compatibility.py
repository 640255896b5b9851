"""docs/compatibility.md is what the same function sees now; HRP never falls back in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compatibility import INITIALISERS, ROWS, outcome, row

import hrp
from hrp.versions import installed_versions

PAGE = (Path(hrp.__file__).parents[2] / "docs" / "compatibility.md").read_text(encoding="utf-8")
PEFT = re.search(r"\(PEFT (\d+\.\d+)", PAGE).group(1)
CHANGED = not installed_versions()["peft"].startswith(PEFT + ".")


@pytest.mark.parametrize("name", ROWS)
def test_the_row_is_the_one_in_the_docs_and_hrp_starts_every_module(name):
    cells = {initialiser: outcome(initialiser, name) for initialiser in INITIALISERS}
    assert cells["hrp"].text == "started"
    if CHANGED:
        pytest.skip(f"the page was made with PEFT {PEFT}")
    assert row(name, list(cells.values())) in PAGE
    for cell in cells.values():
        assert cell.detail in PAGE


@pytest.mark.parametrize("initialiser", ["pissa", "olora", "orthogonal"])
def test_a_fall_back_in_silence_is_seen(initialiser):
    """The measure itself: PEFT gives embeddings its default start, whatever is asked for."""
    assert outcome(initialiser, "nn.Embedding").text == "**default start**"
