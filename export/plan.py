"""The offline memory plan: where each activation lies in the arena, border included."""

from __future__ import annotations

from dataclasses import dataclass

from entropi.export.integer import WINDOWED, Network

ALIGNMENT = 4


@dataclass(frozen=True)
class Place:
    """A tensor's border (top, left, bottom, right) and the offset of its first byte."""

    border: tuple[int, int, int, int]
    offset: int
    bytes: int


def borders(network: Network) -> dict[int, tuple[int, int, int, int]]:
    """The border each tensor needs so that every window of every reader stays inside it."""
    need = {index: [0, 0, 0, 0] for index in network.tensors}
    for layer in network.layers:
        if layer.kind not in WINDOWED or layer.clipped:
            continue
        source, out = network.tensors[layer.inputs[0]], network.tensors[layer.output]
        sizes = zip(source.shape[1:], out.shape[1:], layer.extent, layer.stride, layer.pad, strict=True)
        after = [(o - 1) * s + k - p - n for n, o, k, s, p in sizes]
        border = need[layer.inputs[0]]
        border[:] = [max(x) for x in zip(border, (*layer.pad, *after), strict=True)]
    return {index: tuple(border) for index, border in need.items()}


def plan(network: Network) -> tuple[dict[int, Place], int]:
    """Place every tensor; returns the places and the bytes they take together.

    Largest first, each at the lowest offset where no tensor alive at the same time lies.
    """
    first = {network.input: -1}
    last = {network.output: len(network.layers)}
    for step, layer in enumerate(network.layers):
        first.setdefault(layer.output, step)
        for index in layer.inputs:
            last[index] = max(last.get(index, step), step)
    border = borders(network)
    sizes = {}
    for index in first:
        t, (top, left, bottom, right) = network.tensors[index], border[index]
        sizes[index] = t.channels * (top + t.height + bottom) * (left + t.width + right)

    places: dict[int, Place] = {}
    for index in sorted(first, key=lambda i: (-sizes[i], first[i])):
        alive = sorted(
            (p.offset, p.offset + p.bytes)
            for other, p in places.items()
            if first[index] <= last.get(other, first[other]) and first[other] <= last.get(index, first[index])
        )
        offset = 0
        for start, end in alive:
            if offset + sizes[index] <= start:
                break
            offset = max(offset, -(-end // ALIGNMENT) * ALIGNMENT)
        places[index] = Place(border[index], offset, sizes[index])
    return places, max(p.offset + p.bytes for p in places.values())
