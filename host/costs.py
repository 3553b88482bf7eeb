"""What a layer will take on a core, predicted: a linear model of the runtime's loops, fitted to measured layers.

instructions = sum over loops of (how often it runs) x (what one run costs). What one run costs lies in costs.json, by
core; benchmarks/instruction_costs.py measures it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from entropi.export.image import CLIPPED, HEADER, LAYER, TENSOR
from entropi.export.rows import SHIFT_BYTE

COSTS = Path(__file__).with_name("costs.json")
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
    clipped: bool
    groups: int
    weight_bytes: int
    rows: int
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
        window = fields[5:7], fields[7:9], fields[9:11], fields[1] == CLIPPED
        parameters_at, weight_bytes = fields[16], fields[18]
        rows = out.channels
        if layer["kind"] == "conv":
            bias_bytes, shift = image[parameters_at + 1 : parameters_at + 3]
            with_weights = 4 + bias_bytes + (shift == SHIFT_BYTE)  # bytes; a row without has one
            rows = (layer["bytes"] - weight_bytes - SCALES_HEADER - rows) // (with_weights - 1)
        found.append(Record(source, out, *window, fields[13], weight_bytes, rows, first=fields[3]))
    return found


def _activation(offset, channels, height, width, top, left, bottom, right, zero_point) -> Activation:
    pitch = left + width + right
    return Activation(channels, height, width, offset + top * pitch + left, pitch, pitch * (top + height + bottom))


def _tiles(out: Activation, stride: tuple[int, int]) -> dict[str, int]:
    """How one output channel is divided (conv.c): tiles, whose loops differ by size and stride, and what is left."""
    rows, columns = (1, 8) if out.width >= 8 else (2, 4) if out.width >= 4 else (2, 2)
    tiles = (out.height // rows) * (out.width // columns) if stride[1] <= 2 else 0
    return {f"tile {rows}x{columns}, stride {stride[1]}": tiles, "position": out.positions - tiles * rows * columns}


def _conv(layer: Mapping, record: Record) -> dict[str, int]:
    form, out, (height, width) = layer["encoding"], record.out, record.kernel
    dense = form == "dense"
    kind = "conv dense" if dense else "conv sparse"
    rows = out.channels if dense else record.rows
    entries = {"dense": layer["weights"], "pairs": record.weight_bytes // 2 - 1, "rice": layer["nonzeros"]}[form]
    found = {f"{kind}: row": rows, f"{kind}: output": rows * out.positions}
    for tile, count in _tiles(out, record.stride).items():
        found |= {f"{kind}: {tile}, row": count * rows, f"{kind}: {tile}, weight": count * entries}
        if dense:
            planes = rows * record.source.channels // record.groups
            found |= {f"{kind}: {tile}, plane": count * planes, f"{kind}: {tile}, line": count * planes * height}
    if not dense:
        empty = out.channels - rows
        found |= {f"{kind}: empty row": empty, f"{kind}: empty row, output": empty * out.positions}
        found |= {f"{kind}, {form}: weight": entries, f"{kind}, {form}: byte": record.weight_bytes}
        found[f"{kind}: row, tap"] = rows * height * width
    return found


def _met(record: Record, axis: int) -> int:
    """Rows (axis 0) or columns of the input that all windows of a pool hold together."""
    size, out = ((t.height, t.width)[axis] for t in (record.source, record.out))
    kernel, stride, padding = (pair[axis] for pair in (record.kernel, record.stride, record.padding))
    if not record.clipped:
        return out * kernel
    starts = [position * stride - padding for position in range(out)]
    return sum(min(start + kernel, size) - max(start, 0) for start in starts)


def _loops(layer: Mapping, record: Record) -> dict[str, int]:
    """How often each loop of a layer that is no convolution runs, but for those of its border."""
    kind, source, out = layer["kind"], record.source, record.out
    if kind == "mean":
        return {"input": source.values, "line": source.lines, "output": out.values}
    if kind in ("max_pool", "average_pool"):
        rows, columns = _met(record, 0), _met(record, 1)
        lines = {"line": out.channels * rows * out.width, "tap": out.channels * rows * columns}
        return lines | {"output": out.values, "position": out.positions}
    if kind == "copy":
        there = out.first + record.first * out.plane
        if (source.first, source.pitch, source.plane) == (there, out.pitch, out.plane):
            return {}
        return {"input": source.values, "line": source.lines}
    if kind == "softmax":
        return {"output": out.values, "position": out.positions}
    return {"output": out.values, "line": out.lines, "channel": out.channels}


def loops(image: bytes, layers: Sequence[Mapping]) -> list[dict[str, int]]:
    """How often each loop runs in every layer; in the first one, also those that copy the input in."""
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
