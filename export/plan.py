"""The offline memory plan: where each activation lies in the arena, border included, and where each layer's scratch.

Two tensors share bytes where that changes nothing: an elementwise layer, a pool and a depthwise or grouped convolution
may write over an input that no later layer reads, and the input of a copy may lie where the copy would put it.

A border spares the convolutions that read a tensor their work at the edge, and costs bytes. For few bytes there are
borders as long as the whole stays within 2 % of the largest sum of living tensors; for the fewest instructions every
convolution has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from entropi.export.integer import ADD, CONV, COPY, MUL, SOFTMAX, SUB, TABLE, WINDOWED, Layer, Network

Optimize = Literal["size", "speed"]
Border = tuple[int, int, int, int]  # top, left, bottom, right

IN_PLACE = (ADD, SUB, MUL, TABLE, SOFTMAX)  # may write over an input of the output's shape
ATTEMPTS = 50
MOST_OVER_ALIVE = 1.02
WIDEST_BORDER = 255
NO_BORDER = (0, 0, 0, 0)
NO_SCRATCH: Mapping[int, int] = MappingProxyType({})
SCRATCH_ALIGNMENT = 4


@dataclass(frozen=True)
class Place:
    """A tensor's border (top, left, bottom, right) and the offset of its first byte."""

    border: Border
    offset: int
    bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.bytes


class Plan(NamedTuple):
    """The place of each tensor, that of the scratch of each layer that has some, by number, and the bytes that all take
    together."""

    places: dict[int, Place]
    scratch: dict[int, Place]
    bytes: int


@dataclass(frozen=True)
class Peak:
    """The layer that needs the most memory: its number, the tensors alive while it runs (what it reads and writes, and
    what later layers read) and the bytes they take together, the plan's borders and the layer's scratch included. The
    layer is -1 where only the input is alive, and the number of layers where only the output is."""

    layer: int
    tensors: tuple[int, ...]
    bytes: int


def reach(network: Network, layer: Layer) -> Border:
    """How far the windows of a convolution or pool reach over its input's edges: top, left, bottom, right."""
    source, out = network.tensors[layer.inputs[0]], network.tensors[layer.output]
    sizes = zip(source.shape[1:], out.shape[1:], layer.extent, layer.stride, layer.pad, strict=True)
    return *layer.pad, *(max(0, (o - 1) * s + k - p - n) for n, o, k, s, p in sizes)


def borders(network: Network) -> dict[int, Border]:
    """The border of each tensor inside which every window of every convolution stays that reads it; none where that is
    wider than the image format holds."""
    need = dict.fromkeys(network.tensors, NO_BORDER)
    for layer in network.layers:
        if layer.kind == CONV:
            source = layer.inputs[0]
            need[source] = tuple(map(max, need[source], reach(network, layer)))
    return {index: border if max(border) <= WIDEST_BORDER else NO_BORDER for index, border in need.items()}


def guards(network: Network, border: Mapping[int, Border]) -> dict[int, tuple[int, int]]:
    """How many bytes before and behind each tensor a convolution reads, and takes back, where there is no border."""
    need = dict.fromkeys(network.tensors, (0, 0))
    for layer in network.layers:
        if layer.kind == CONV:
            source = layer.inputs[0]
            beyond = [max(0, r - b) for r, b in zip(reach(network, layer), border[source], strict=True)]
            need[source] = tuple(map(max, need[source], beyond[1::2]))
    return need


def edge_work(network: Network) -> dict[int, float]:
    """Of each tensor, how many multiply-accumulates its border spares the convolutions that read it."""
    work = dict.fromkeys(network.tensors, 0.0)
    for layer in network.layers:
        if layer.kind != CONV or not any(reach(network, layer)):
            continue
        source, out = network.tensors[layer.inputs[0]], network.tensors[layer.output]
        columns = np.arange(out.width)[:, None] * layer.stride[1] + np.arange(layer.kernel[1]) * layer.dilation[1]
        outside = (columns < layer.pad[1]) | (columns >= layer.pad[1] + source.width)
        work[layer.inputs[0]] += np.count_nonzero(layer.weight) * out.height * outside.sum() / layer.kernel[1]
    return work


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


def alive_bytes(network: Network) -> int:
    """The largest sum, over the layers, of the tensors that a layer reads, writes or leaves for later, without borders,
    no two sharing a byte."""
    spans = [(first, last, math.prod(network.tensors[i].shape)) for i, (first, last) in lifetimes(network).items()]
    return max(
        (sum(n for first, last, n in spans if first <= at <= last) for at in range(len(network.layers))), default=0
    )


def plan(network: Network, optimize: Optimize = "size", scratch: Mapping[int, int] = NO_SCRATCH) -> Plan:
    """Place every tensor, and `scratch`: bytes by the number of the layer that works in them.

    "speed": every tensor has the border that its readers want. "size": as few bytes as without any border, or
    MOST_OVER_ALIVE times alive_bytes where that is more, and of the borders that fit there those that spare most work;
    scratch comes on top of that.
    """
    wanted = borders(network)
    if optimize == "speed":
        return _place(network, wanted, scratch)
    chosen = dict.fromkeys(network.tensors, NO_BORDER)
    limit = max(_place(network, chosen).bytes, int(MOST_OVER_ALIVE * alive_bytes(network)))
    if _place(network, wanted).bytes <= limit:
        return _place(network, wanted, scratch)
    work = edge_work(network)
    for index in sorted((i for i, border in wanted.items() if any(border)), key=lambda i: (-work[i], i)):
        tried = chosen | {index: wanted[index]}
        if _place(network, tried, enough=limit).bytes <= limit:
            chosen = tried
    return _place(network, chosen, scratch)


def _place(
    network: Network, border: Mapping[int, Border], scratch: Mapping[int, int] = NO_SCRATCH, enough: int = 0
) -> Plan:
    """The best of several attempts to place tensors with these borders; the first that takes no more than `enough`."""
    best, bound = None, math.inf
    for tied in (True, False):
        bodies = _Bodies(network, border, scratch, tied)
        order = sorted(bodies.members, key=lambda b: (-bodies.bytes(b), b))
        for _ in range(ATTEMPTS):
            found = bodies.guarded(_first_fit(bodies, order))
            if best is None or found.bytes < best.bytes:
                best = found
            bound = min(bound, peak(network, found).bytes)
            if best.bytes <= max(bound, enough):
                return best
            if bound > enough > 0:
                break
            # What did not fit under the bound is placed earlier in the next attempt.
            ends = {i: place.end for i, place in found.places.items()}
            ends |= {~step: place.end for step, place in found.scratch.items()}
            high = [b for b in order if any(ends[i] > bound for i in bodies.members[b])]
            order = high + [b for b in order if b not in high]
    return best


def peak(network: Network, planned: Plan) -> Peak:
    """Where a plan's memory goes."""
    alive = lifetimes(network)
    most = Peak(-1, (), 0)
    for step in range(-1, len(network.layers) + 1):
        here = tuple(i for i, (first, last) in alive.items() if first <= step <= last)
        taken, end = planned.scratch[step].bytes if step in planned.scratch else 0, 0
        for place in sorted((planned.places[i] for i in here), key=lambda p: p.offset):
            taken += max(0, place.end - max(end, place.offset))
            end = max(end, place.end)
        if taken > most.bytes:
            most = Peak(step, here, taken)
    return most


class _Bodies:
    """Tensors in bodies that are placed as one: `members` maps a body to the offsets of its tensors within it. `before`
    maps pairs of an output and an input that may share bytes to how far the output must then begin before the input;
    where they are `tied`, it begins just so far before. The scratch of layer n is a body of its own, ~n."""

    def __init__(self, network: Network, border: Mapping[int, Border], scratch: Mapping[int, int], tied: bool):
        self.network = network
        self.tied = tied
        self.border = dict(border)
        self.alive = lifetimes(network)
        self.members = {index: {index: 0} for index in self.alive}
        self.body = {index: index for index in self.alive}
        copies = [(layer.inputs[0], layer.output, layer.first) for layer in network.layers if layer.kind == COPY]
        self.copies = [c for c in copies if network.tensors[c[0]].zero_point == network.tensors[c[1]].zero_point]
        self.before: dict[tuple[int, int], int] = {}
        for copy in self.copies:  # these widen borders, on which the distances of the others depend
            self._lay_inside(*copy)
        for step, layer in enumerate(network.layers):
            if layer.kind in IN_PLACE:
                self._write_over(step, layer)
            elif layer.kind in WINDOWED:
                self._write_before(step, layer)
        self.sizes = {index: self._size(index) for index in self.alive}
        for step, size in scratch.items():
            self.sizes[~step], self.alive[~step], self.members[~step] = size, (step, step), {~step: 0}

    def bytes(self, body: int) -> int:
        """From a body's first byte to its last."""
        return max(offset + self.sizes[index] for index, offset in self.members[body].items())

    def guarded(self, offsets: dict[int, int]) -> Plan:
        """The plan, moved up by what is read before the first tensor, and as long as what is read behind the last."""
        guard = guards(self.network, self.border)
        up = max(0, *(guard[index][0] - offset for index, offset in offsets.items() if index >= 0))
        up = _aligned(up) if min(offsets) < 0 else up
        tensors = {i: Place(self.border[i], offsets[i] + up, self.sizes[i]) for i in offsets if i >= 0}
        scratch = {~i: Place(NO_BORDER, offsets[i] + up, self.sizes[i]) for i in offsets if i < 0}
        ends = [place.end + guard[index][1] for index, place in tensors.items()]
        return Plan(tensors, scratch, max(ends + [place.end for place in scratch.values()]))

    def meet(self, a: int, b: int) -> bool:
        """Whether two tensors are alive at the same time."""
        return self.alive[a][0] <= self.alive[b][1] and self.alive[b][0] <= self.alive[a][1]

    def blocked(self, index: int, other: int, at: int) -> tuple[int, int]:
        """Where a tensor must not begin, from one offset up to another, because another one begins at `at`."""
        start, end = at - self.sizes[index], at + self.sizes[other]
        if (index, other) in self.before:
            start = max(start, at - self.before[index, other])
        if (other, index) in self.before:
            end = min(end, at + self.before[other, index])
        return start, end

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

    def _write_before(self, step: int, layer: Layer) -> None:
        """Let the output lie over an input that dies, each group of its channels before those that are still to be
        read when it is written: the kernels go from group to group. A pool's groups are its channels. The border is
        written after all of them."""
        source, output = layer.inputs[0], layer.output
        groups = layer.groups if layer.kind == CONV else self.network.tensors[source].channels
        if groups > 1 and self.alive[source][1] <= step:
            read, written = self._size(source) // groups, self._size(output) // groups
            distance = max((g + 1) * written - g * read for g in (0, groups - 1))
            if not self.tied:
                self.before[output, source] = distance
            else:
                self._tie(source, output, distance)

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


def _first_fit(bodies: _Bodies, order: list[int]) -> dict[int, int]:
    """Each body at the lowest offset where no tensor alive at the same time lies; from each tensor to its offset."""
    offsets: dict[int, int] = {}
    for body in order:
        taken = sorted(
            tuple(offset - at for offset in bodies.blocked(index, other, place))
            for index, at in bodies.members[body].items()
            for other, place in offsets.items()
            if bodies.meet(index, other)
        )
        offset = 0
        for start, end in taken:
            if offset <= start:
                break
            offset = max(offset, _aligned(end) if body < 0 else end)
        for index, at in bodies.members[body].items():
            offsets[index] = offset + at
    return offsets


def _aligned(offset: int) -> int:
    return -(-offset // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
