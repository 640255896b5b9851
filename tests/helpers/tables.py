"""Reading of tables in tests."""

from __future__ import annotations


def column(table, title: str) -> dict[str, str]:
    """Return the cells under the header that starts with ``title``, by the rows' first cells."""
    index = next(i for i, name in enumerate(table.header) if name.startswith(title))
    return {row[0]: row[index] for row in table.rows}
