"""What a layer will take on a core, predicted: a linear model of the runtime's loops, fitted to measured layers.

instructions = sum over loops of (how often it runs) x (what one run costs). What one run costs lies in costs.json, by
core; benchmarks/instruction_costs.py measures it."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from entropi.export.image import CLIPPED, HEADER, LAYER, TENSOR
from entropi.export.rows import FORM_BYTES, SHIFT_BYTE

COSTS = Path(__file__).with_name("costs.json")
ELEMENTWISE = ("add", "sub", "mul")
PART = 64  # values that an elementwise layer takes at a time
ONE_HALF = (1 << 30, 0)  # multiplier and shift
SCALES_HEADER = 4  # bytes of a convolution's parameters before the first row's


@dataclass(frozen=True)
class Activation:
    """A tensor of an image: its size, and where its first value, the next row's and the next channel's lie."""

    channels: int
    height: int
    width: int
    first: int
    pitch: int
    plane: int
    border_before: tuple[int, int]  # top, left
    border_behind: tuple[int, int]  # bottom, right

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def values(self) -> int:
        return self.channels * self.positions

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def lines(self) -> int:
        return self.channels * self.height

    @property
    def border(self) -> dict[str, int]:
        """The loops that write it."""
        surplus = self.channels * (self.plane - self.positions)
        return {"border: byte": surplus, "border: line": self.lines + self.channels} if surplus else {}


@dataclass(frozen=True)
class Record:
    """A layer of an image, as far as its cost goes. A convolution's `weight_bytes` are those of its weights alone, and
    `rows` are its output channels that the image stores entries of."""

    source: Activation
    out: Activation
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    clipped: bool
    groups: int
    weight_bytes: int
    rows: int
    second: Activation | None  # of add, sub and mul
    rounded: int  # of add and sub: how many operands have another scale than one half
    clamped: bool  # to less than all of int8
    first: int  # of a copy: the channel that it begins at


def records(image: bytes, layers: Sequence[Mapping]) -> list[Record]:
    """Every layer of an image (docs/image-format.md). `layers` are as export.image.LayerReport has them."""
    header = HEADER.unpack_from(image)
    tensors, count, tensors_at, layers_at = header[4], header[5], header[14], header[15]
    activations = [_activation(*TENSOR.unpack_from(image, tensors_at + i * TENSOR.size)) for i in range(tensors)]
    found = []
    for i, layer in zip(range(count), layers, strict=True):
        fields = LAYER.unpack_from(image, layers_at + i * LAYER.size)
        source, out = activations[fields[2]], activations[fields[4]]
        window = fields[5:7], fields[7:9], fields[9:11], fields[11:13], fields[1] == CLIPPED
        parameters_at, weight_bytes = fields[16], fields[18]
        rows, second, rounded, clamped = out.channels, None, 0, fields[14:16] != (-128, 127)
        if layer["kind"] in ELEMENTWISE:
            second = activations[fields[3]]
        if layer["kind"] in ("add", "sub"):
            scales = struct.unpack_from("<4i", image, parameters_at)
            rounded = sum(scale != ONE_HALF for scale in (scales[:2], scales[2:]))
        if layer["kind"] == "conv":
            bias_bytes, shift = image[parameters_at + 1 : parameters_at + 3]
            with_weights = 4 + bias_bytes + (shift == SHIFT_BYTE)  # bytes; a row without has one
            rows = (layer["bytes"] - weight_bytes - SCALES_HEADER - rows) // (with_weights - 1)
        found.append(
            Record(source, out, *window, fields[13], weight_bytes, rows, second, rounded, clamped, first=fields[3])
        )
    return found


def _activation(offset, channels, height, width, top, left, bottom, right, zero_point) -> Activation:
    pitch = left + width + right
    plane = pitch * (top + height + bottom)
    first = offset + top * pitch + left
    return Activation(channels, height, width, first, pitch, plane, (top, left), (bottom, right))


def _inside(record: Record, axis: int, bordered: bool = True) -> np.ndarray:
    """Of each window along an axis, how many of its taps lie inside the input, or inside its border."""
    size, outputs = record.source.size[axis], record.out.size[axis]
    before, behind = (b[axis] if bordered else 0 for b in (record.source.border_before, record.source.border_behind))
    taps = np.arange(record.kernel[axis]) * record.dilation[axis] - record.padding[axis]
    at = np.arange(outputs)[:, None] * record.stride[axis] + taps
    return ((at >= -before) & (at < size + behind)).sum(axis=1)


def _tiles(record: Record, whole: np.ndarray) -> Iterator[tuple[str, int, int]]:
    """How one output channel is divided (conv.c): the size of tiles, the output row that they lie at and how many lie
    there. `whole` says of which output rows all windows lie inside."""
    out, stride = record.out, record.stride[1]
    rows, columns = (1, 8) if out.width >= 8 else (2, 4) if out.width >= 4 else (2, 2)
    if stride > 2 or out.width < 2 or rows > out.height:
        rows, columns = 1, 1
    y = 0
    while y < out.height:
        wide = rows == 1 or y + 1 < out.height and whole[y : y + 2].all()
        high, across = (rows, columns) if wide else (1, 1)
        rest = out.width % columns if wide else 0
        tile = "position" if across == 1 else f"tile {rows}x{columns}, stride {stride}"
        yield tile, y, (out.width - rest) // across
        if rest:
            yield "position", y, rest * high
        y += high


def _conv(layer: Mapping, record: Record) -> Counter[str]:
    form, out, (height, width) = layer["encoding"], record.out, record.kernel
    dense = form == "dense"
    kind = "conv dense" if dense else "conv sparse"
    rows = out.channels if dense else record.rows
    pairs = (record.weight_bytes - FORM_BYTES) // 2 - 1
    entries = {"dense": layer["weights"], "pairs": pairs, "rice": layer["nonzeros"]}[form]
    inside = [_inside(record, axis) for axis in (0, 1)]
    columns_outside = width - inside[1]
    planes = rows * record.source.channels // record.groups
    if height * width == 1 and all(met.all() for met in inside):
        planes = rows  # the channels are walked as columns of one
    found = Counter({f"{kind}: row": rows, f"{kind}: output": rows * out.positions})
    found["conv: clamped output"] = rows * out.positions * record.clamped
    for tile, y, count in _tiles(record, inside[0] == height):
        lines = inside[0][y]
        found[f"{kind}: {tile}, row"] += count * rows
        found[f"{kind}: {tile}, weight"] += count * entries * lines / height
        if dense:
            found[f"{kind}: {tile}, plane"] += count * planes
            found[f"{kind}: {tile}, line"] += count * planes * lines
    found[f"{kind}: line"] = rows * out.height
    cut = height - inside[0]
    found[f"{kind}: cut line"] = rows * np.count_nonzero(cut)
    found[f"{kind}: cut line, weight"] = entries * cut.sum() / height
    found[f"{kind}: edge"] = rows * out.height * np.count_nonzero(columns_outside)
    found[f"{kind}: edge, line"] = (planes if dense else rows) * inside[0].sum() * np.count_nonzero(columns_outside)
    found[f"{kind}: edge, weight"] = entries * inside[0].sum() * columns_outside.sum() / (height * width)
    if not dense:
        empty = out.channels - rows
        found.update({f"{kind}: empty row": empty, f"{kind}: empty row, output": empty * out.positions})
        found.update({f"{kind}, {form}: weight": entries, f"{kind}, {form}: byte": record.weight_bytes})
        found[f"{kind}: row, tap"] = rows * height * width
    return found


def _elementwise(record: Record) -> dict[str, int]:
    """How the values of a layer of two operands lie in lines, and these in parts (layers.c)."""
    a, b, out = record.source, record.second, record.out
    lines, length = out.lines, out.width
    if b.size == out.size and a.pitch == b.pitch == out.pitch:
        lines, length = out.channels, (out.height - 1) * out.pitch + out.width
        if b.channels == out.channels and a.plane == b.plane == out.plane == out.positions:
            lines, length = 1, out.values
    values = lines * length
    counts = {"value": values, "rounded value": values * record.rounded, "clamped value": values * record.clamped}
    return counts | {"part": lines * -(-length // PART), "line": lines, "channel": out.channels}


def _loops(layer: Mapping, record: Record) -> dict[str, int]:
    """How often each loop of a layer that is no convolution runs, but for those of its border."""
    kind, source, out = layer["kind"], record.source, record.out
    if kind == "mean":
        return {"input": source.values, "line": source.lines, "output": out.values}
    if kind in ("max_pool", "average_pool"):
        rows, columns = (int(_inside(record, axis, not record.clipped).sum()) for axis in (0, 1))
        lines = {"line": out.channels * rows * out.width, "tap": out.channels * rows * columns}
        return lines | {"output": out.values, "row": out.lines}
    if kind == "copy":
        there = out.first + record.first * out.plane
        if (source.first, source.pitch, source.plane) == (there, out.pitch, out.plane):
            return {}
        return {"input": source.values, "line": source.lines}
    if kind == "softmax":
        return {"output": out.values, "position": out.positions}
    if kind in ELEMENTWISE:
        return _elementwise(record)
    return {"output": out.values, "line": out.lines, "channel": out.channels}


def loops(image: bytes, layers: Sequence[Mapping]) -> list[dict[str, float]]:
    """How often each loop runs in every layer; in the first one, also those that copy the input in. Weights count as if
    they were spread evenly over the taps of their kernel."""
    found = []
    for layer, record in zip(layers, records(image, layers), strict=True):
        kind = layer["kind"]
        if kind == "conv":
            counts = _conv(layer, record)
        else:
            counts = {f"{kind}: {name}": count for name, count in _loops(layer, record).items()}
        found.append(counts | {f"{kind}: layer": 1} | record.out.border)
        if len(found) == 1:
            source = record.source
            copied = {"input: value": source.values, "input: line": source.lines, **source.border}
            found[0] = {name: found[0].get(name, 0) + copied.get(name, 0) for name in found[0] | copied}
    return [{name: count for name, count in counts.items() if count} for counts in found]


@cache
def costs() -> dict:
    """The file as benchmarks/instruction_costs.py wrote it."""
    return json.loads(COSTS.read_text())


def predict(image: bytes, layers: Sequence[Mapping], core: str) -> list[int | None]:
    """Instructions of every layer on `core`; None where what a loop costs there is not known."""
    known = costs()["cores"].get(core, {}).get("instructions", {})
    return [
        round(sum(known[name] * count for name, count in counts.items())) if counts.keys() <= known.keys() else None
        for counts in loops(image, layers)
    ]
