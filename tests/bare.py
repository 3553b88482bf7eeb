"""Tensors without borders, and inputs that reach the ends of int8."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from entropi.export.integer import Network
from entropi.export.plan import Place

EXTREMES = (-128, 127)
SLACK = 8  # bytes


def without_borders(network: Network, *_) -> tuple[dict[int, Place], int]:
    """Tensors one behind the other, where the exporter would put borders around them; what windows meet beyond their
    sides is activations, too."""
    places, end = {}, SLACK
    for number, t in network.tensors.items():
        places[number] = Place((0, 0, 0, 0), end, t.channels * t.height * t.width)
        end = places[number].end
    return places, end + SLACK


def inputs(rng, shape) -> Iterator[np.ndarray]:
    yield np.full(shape, -128, np.int8)
    yield rng.choice(EXTREMES, shape).astype(np.int8)
    yield rng.integers(-128, 128, shape).astype(np.int8)
