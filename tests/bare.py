"""Tensors without borders, and inputs that reach the ends of int8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from entropi.export.integer import Network
from entropi.export.plan import Place, Plan

EXTREMES = (-128, 127)
SLACK = 8  # bytes


def without_borders(network: Network, _, scratch: Mapping[int, int]) -> Plan:
    """Tensors one behind the other, where the exporter would put borders around them, and one scratch for all behind;
    what windows meet beyond their sides is activations, too."""
    places, end = {}, SLACK
    for number, t in network.tensors.items():
        places[number] = Place((0, 0, 0, 0), end, t.channels * t.height * t.width)
        end = places[number].end
    end = (end + SLACK) // 4 * 4
    return Plan(
        places,
        {step: Place((0, 0, 0, 0), end, n) for step, n in scratch.items()},
        end + max(scratch.values(), default=0),
    )


def inputs(rng, shape) -> Iterator[np.ndarray]:
    yield np.full(shape, -128, np.int8)
    yield rng.choice(EXTREMES, shape).astype(np.int8)
    yield rng.integers(-128, 128, shape).astype(np.int8)
