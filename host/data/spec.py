"""The one syntax for data sets: KIND[:PATH][,option=value]..., such as folder:PACS,hold-out=sketch,size=32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LARGEST_SIZE = 1024


@dataclass(frozen=True)
class Spec:
    """What a spec says; None where it does not say. str() writes it again, options in the order below.

    size: pixels a side; test: share of the samples, 0..1; per_class: training samples of each class;
    domain, hold_out: names of domains."""

    kind: str
    path: str | None = None
    size: int | None = None
    test: float | None = None
    seed: int | None = None
    per_class: int | None = None
    domain: tuple[str, ...] | None = None
    hold_out: tuple[str, ...] | None = None

    @property
    def source(self) -> str:
        """The spec without its options."""
        return self.kind if self.path is None else f"{self.kind}:{self.path}"

    def __str__(self) -> str:
        values = {option: getattr(self, _field(option)) for option in OPTIONS}
        given = {option: value for option, value in values.items() if value is not None}
        written = (f",{o}={'+'.join(v) if isinstance(v, tuple) else v}" for o, v in given.items())
        return self.source + "".join(written)


def parse(text: str) -> Spec:
    """Take a spec apart. Raises ValueError naming the option and what it takes; kinds are not looked up here.

    Neither a path nor the name of a domain can contain a comma."""
    source, *parts = text.split(",")
    kind, colon, path = source.partition(":")
    fields: dict[str, Any] = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if option not in OPTIONS or not equals:
            raise ValueError(
                f"{part!r} in {text!r} is no option; write option=value with {', '.join(OPTIONS)} "
                "(a path cannot contain a comma)"
            )
        if _field(option) in fields:
            raise ValueError(f"{option} is given twice in {text!r}; give it once")
        fields[_field(option)] = OPTIONS[option](option, value)
    return Spec(kind, path if colon else None, **fields)


def _field(option: str) -> str:
    return option.replace("-", "_")


def _whole(low: int, high: int) -> Callable[[str, str], int]:
    def convert(option: str, value: str) -> int:
        if not (value.isascii() and value.isdecimal() and low <= int(value) <= high):
            raise ValueError(f"{option}={value!r} is not valid; give a whole number from {low} to {high}")
        return int(value)

    return convert


def _share(option: str, value: str) -> float:
    try:
        share = float(value)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ValueError(f"{option}={value!r} is not valid; give a share between 0 and 1, such as 0.2")
    return share


def _names(option: str, value: str) -> tuple[str, ...]:
    names = tuple(value.split("+"))
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"{option}={value!r} is not valid; give names of domains joined by +, each once")
    return names


OPTIONS: dict[str, Callable[[str, str], Any]] = {
    "size": _whole(1, LARGEST_SIZE),
    "test": _share,
    "seed": _whole(0, 2**32 - 1),
    "per-class": _whole(1, 10**6),
    "domain": _names,
    "hold-out": _names,
}
