"""Sizes in bytes, as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 1000, "kib": 1024, "mb": 1000**2, "mib": 1024**2}


def parse_bytes(text: int | str) -> int:
    """49152, "49152", "48KiB" or "48 kB" -> bytes. Raises ValueError naming the text and the forms it may have."""
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", str(text))
    unit = match and _UNITS.get(match[2].lower())
    if not unit:
        raise ValueError(f"{text!r} is no size; write bytes as 49152, 48KiB (1024) or 48kB (1000)")
    return int(match[1]) * unit
