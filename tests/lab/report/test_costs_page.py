"""docs/costs.md is what the records say."""

from __future__ import annotations

import runpy
from pathlib import Path

import hrp

ROOT = Path(hrp.__file__).parents[2]


def test_the_page_of_costs_is_the_one_generated_from_the_records():
    page = runpy.run_path(str(ROOT / "lab" / "benchmarks" / "costs_page.py"))["page"]()
    assert page == (ROOT / "docs" / "costs.md").read_text(encoding="utf-8")
    assert page.count("\n| ") > 25
