"""Tables of pages in docs/, which benchmarks write between markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with every table between its markers; other tables stay. Raises ValueError where a table has none."""
    for name, table in tables.items():
        before, start, rest = page.partition(f"<!-- {name} -->\n\n")
        _, end, behind = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"the page has no place for a table {name!r}; mark it")
        page = f"{before}{start}{table}\n{end}{behind}"
    return page


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; columns whose name starts with ">" hold numbers."""
    head = "| " + " | ".join(name.lstrip(">") for name in columns) + " |\n"
    rule = "|" + "|".join("---:" if name.startswith(">") else "---" for name in columns) + "|\n"
    return head + rule + "".join("| " + " | ".join(line) + " |\n" for line in lines)
