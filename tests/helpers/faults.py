"""The table of faults in docs/reliability.md, which is made of what tests say that they show.

`python tests/helpers/faults.py` writes it anew.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Test = TypeVar("Test", bound=Callable[..., object])

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
HEADER = "| fault | command | what happens | shown by |\n|---|---|---|---|\n"


def fault(section: str, what: str, *, command: str, outcome: str) -> Callable[[Test], Test]:
    """Say, on a test, which row of the page it shows; the test itself stays as it is."""
    return lambda test: test


def rows() -> dict[str, list[str]]:
    """Read the rows of all tests, by section, in the order of files and lines."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for call in getattr(node, "decorator_list", ()):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "fault":
                    section, what = map(ast.literal_eval, call.args)
                    said = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
                    row = f"| {what} | {said['command']} | {said['outcome']} | `{node.name}` |\n"
                    found.setdefault(section, []).append(row)
    return found


def page(text: str) -> str:
    """Return the page with the table of each section made of `rows`."""
    made = rows()
    parts = re.split(r"(?m)^(?=## )", text)
    for number, part in enumerate(parts):
        section = part.partition("\n")[0].removeprefix("## ")
        if section in made:
            body = re.sub(r"(?m)^\|.*\n", "", part).rstrip("\n")
            parts[number] = f"{body}\n\n{HEADER}{''.join(made.pop(section))}\n"
    if made:
        raise ValueError(f"the page has no section {sorted(made)}")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
