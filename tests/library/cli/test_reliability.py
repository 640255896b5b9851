"""The table of faults in docs/reliability.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parents[1] / "docs" / "reliability.md"


def test_every_fault_in_the_table_has_its_test():
    text = PAGE.read_text()
    shown = re.findall(r"`(test_\w+)` \|$", text, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "fault" not in line]
    defined = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert len(shown) == len(rows) > 20
    assert set(shown) <= defined
