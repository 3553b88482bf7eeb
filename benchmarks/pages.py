"""Tables of pages in docs/, which benchmarks write between markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def filled(page: str, tables: dict[str, str]) -> str:
    """The page with every table between its markers. Raises ValueError for a marker that no table is for."""

    def fill(found: re.Match) -> str:
        if found[1] not in tables:
            raise ValueError(f"the page has a marker {found[1]!r}; there is no such table")
        return f"<!-- {found[1]} -->\n\n{tables[found[1]]}\n<!-- end -->"

    return re.sub(r"<!-- ((?!end)[^>]+?) -->.*?<!-- end -->", fill, page, flags=re.DOTALL)


def markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; columns whose name starts with ">" hold numbers."""
    head = "| " + " | ".join(name.lstrip(">") for name in columns) + " |\n"
    rule = "|" + "|".join("---:" if name.startswith(">") else "---" for name in columns) + "|\n"
    return head + rule + "".join("| " + " | ".join(line) + " |\n" for line in lines)
