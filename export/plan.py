"""The offline memory plan: where each activation lies in the arena, border included.

Two tensors share bytes where that changes nothing: an elementwise layer may write over an input that no later layer
reads, and the input of a copy may lie where the copy would put it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from entropi.export.integer import ADD, COPY, MUL, SOFTMAX, SUB, TABLE, WINDOWED, Layer, Network

IN_PLACE = (ADD, SUB, MUL, TABLE, SOFTMAX)  # may write over an input of the output's shape
ATTEMPTS = 50


@dataclass(frozen=True)
class Place:
    """A tensor's border (top, left, bottom, right) and the offset of its first byte."""

    border: tuple[int, int, int, int]
    offset: int
    bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.bytes


@dataclass(frozen=True)
class Peak:
    """The layer that needs the most memory: its number, the tensors alive while it runs (what it reads and writes, and
    what later layers read) and the bytes they take together. No plan can do with less. The layer is -1 where only the
    input is alive, and the number of layers where only the output is."""

    layer: int
    tensors: tuple[int, ...]
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


def lifetimes(network: Network) -> dict[int, tuple[int, int]]:
    """The layers that first and last touch each tensor; the input is written before layer 0, the output read after the
    last one."""
    first, last = {network.input: -1}, {network.input: -1}
    for step, layer in enumerate(network.layers):
        first.setdefault(layer.output, step)
        for index in (*layer.inputs, layer.output):
            last[index] = step
    last[network.output] = len(network.layers)
    return {index: (first[index], last[index]) for index in first}


def plan(network: Network) -> tuple[dict[int, Place], int]:
    """Place every tensor; returns the places and the bytes they take together."""
    bodies = _Bodies(network)
    best, least = {}, 0
    order = sorted(bodies.members, key=lambda b: (-bodies.bytes(b), b))
    for _ in range(ATTEMPTS):
        places = _first_fit(bodies, order)
        total = max(p.end for p in places.values())
        if not best or total < least:
            best, least = places, total
        bound = peak(network, places).bytes
        if least == bound:
            break
        # What did not fit under the bound is placed earlier in the next attempt.
        high = [b for b in order if any(places[i].end > bound for i in bodies.members[b])]
        order = high + [b for b in order if b not in high]
    return best, least


def peak(network: Network, places: dict[int, Place]) -> Peak:
    """Where a plan's memory goes."""
    alive = lifetimes(network)
    most = Peak(-1, (), 0)
    for step in range(-1, len(network.layers) + 1):
        here = tuple(i for i, (first, last) in alive.items() if first <= step <= last)
        taken = end = 0
        for place in sorted((places[i] for i in here), key=lambda p: p.offset):
            taken += max(0, place.end - max(end, place.offset))
            end = max(end, place.end)
        if taken > most.bytes:
            most = Peak(step, here, taken)
    return most


class _Bodies:
    """Tensors in bodies that are placed as one: `members` maps a body to the offsets of its tensors within it."""

    def __init__(self, network: Network):
        self.network = network
        self.border = borders(network)
        self.alive = lifetimes(network)
        self.members = {index: {index: 0} for index in self.alive}
        self.body = {index: index for index in self.alive}
        copies = [(layer.inputs[0], layer.output, layer.first) for layer in network.layers if layer.kind == COPY]
        self.copies = {c for c in copies if network.tensors[c[0]].zero_point == network.tensors[c[1]].zero_point}
        for step, layer in enumerate(network.layers):
            if (layer.inputs[0], layer.output, layer.first) in self.copies:
                self._lay_inside(layer.inputs[0], layer.output, layer.first)
            elif layer.kind in IN_PLACE:
                self._write_over(step, layer)
        self.sizes = {index: self._size(index) for index in self.alive}

    def bytes(self, body: int) -> int:
        """From a body's first byte to its last."""
        return max(offset + self.sizes[index] for index, offset in self.members[body].items())

    def meet(self, a: int, b: int) -> bool:
        """Whether two tensors are alive at the same time."""
        return self.alive[a][0] <= self.alive[b][1] and self.alive[b][0] <= self.alive[a][1]

    def _pitch(self, index: int) -> int:
        return self.border[index][1] + self.network.tensors[index].width + self.border[index][3]

    def _plane(self, index: int) -> int:
        return self._pitch(index) * (self.border[index][0] + self.network.tensors[index].height + self.border[index][2])

    def _size(self, index: int) -> int:
        return self.network.tensors[index].channels * self._plane(index)

    def _corners(self, index: int) -> Iterator[int]:
        """Where a tensor's first and last value along each axis lie in it."""
        top, left = self.border[index][:2]
        for c, y, x in product(*((0, n - 1) for n in self.network.tensors[index].shape)):
            yield c * self._plane(index) + (top + y) * self._pitch(index) + left + x

    def _write_over(self, step: int, layer: Layer) -> None:
        """Let the output lie over an input that dies, as close before it as leaves no value written over one that is
        still to be read: the kernels go from the first address to the last, and the border is written after them.
        Softmax reads all channels before it writes one, so there every value stays at its address."""
        for source in layer.inputs:
            same = self.network.tensors[source].shape == self.network.tensors[layer.output].shape
            alike = self.border[source] == self.border[layer.output]
            if not same or self.alive[source][1] > step or layer.kind == SOFTMAX and not alike:
                continue
            values = zip(self._corners(layer.output), self._corners(source), strict=True)
            if self._tie(source, layer.output, max(b - a for b, a in values)):
                return

    def _lay_inside(self, source: int, output: int, first: int) -> None:
        """Let a copy's input lie where it would be copied to, in a border as wide as the output's."""
        before, wide = self.border[source], self.border[output]
        alone = len(self.members[self.body[source]]) == 1
        if before == wide or alone and all(m <= n for m, n in zip(before, wide, strict=True)):
            self.border[source] = wide
            if not self._tie(source, output, first * self._plane(output)):
                self.border[source] = before

    def _lies_inside(self, source: int, output: int, distance: int) -> bool:
        """Whether a tensor at this distance from another holds the same bytes, a copy between them making it so."""
        channel, inside = divmod(distance, self._plane(output))
        copied = (source, output, channel) in self.copies and not inside
        return copied and self.border[source] == self.border[output]

    def _tie(self, source: int, output: int, distance: int) -> bool:
        """Join two bodies, the source `distance` bytes behind the output, unless living tensors would then collide."""
        a, b = self.body[source], self.body[output]
        shift = self.members[b][output] + distance - self.members[a][source]
        moved = {index: offset + shift for index, offset in self.members[a].items()}
        if a == b or any(
            self.meet(i, j)
            and x < y + self._size(j)
            and y < x + self._size(i)
            and (i, j) != (source, output)
            and not self._lies_inside(i, j, x - y)
            for (i, x), (j, y) in product(moved.items(), self.members[b].items())
        ):
            return False
        joined = self.members[b] | moved
        lowest = min(joined.values())
        self.members[b] = {index: offset - lowest for index, offset in joined.items()}
        del self.members[a]
        self.body |= dict.fromkeys(moved, b)
        return True


def _first_fit(bodies: _Bodies, order: list[int]) -> dict[int, Place]:
    """Each body at the lowest offset where no tensor alive at the same time lies."""
    places: dict[int, Place] = {}
    for body in order:
        taken = sorted(
            (place.offset - at - bodies.sizes[index], place.end - at)
            for index, at in bodies.members[body].items()
            for other, place in places.items()
            if bodies.meet(index, other)
        )
        offset = 0
        for start, end in taken:
            if offset <= start:
                break
            offset = max(offset, end)
        for index, at in bodies.members[body].items():
            places[index] = Place(bodies.border[index], offset + at, bodies.sizes[index])
    return places
