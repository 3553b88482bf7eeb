"""What a layer will take on a core, predicted: a linear model of the runtime's loops, fitted to measured layers.

instructions = sum over loops of (how often it runs) x (what one run costs). What one run costs lies in costs.json, by
core; benchmarks/instruction_costs.py measures it. The exporter chooses by it how weights are stored, and `entropi
report` shows it beside what was measured."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from entropi.device.toolchain import CORES
from entropi.export.layout import CLIPPED, HEADER, LAYER, TENSOR
from entropi.export.rows import FORM_BYTES, SHIFT_BYTE

COSTS = Path(__file__).with_name("costs.json")
DEFAULT_CORE = "cortex-m4f"
VECTOR_CORE = "cortex-m55"  # runs sparse_vectors.c, usual_mve.c and dense.c's vectors
PAIR_CORES = ("cortex-m4f", "cortex-m7", "cortex-m33")  # dense.c widens inputs to pairs of 16 bits
ELEMENTWISE = ("add", "sub", "mul")
VECTOR_BYTES = 16
PART = 64  # values that an elementwise layer takes at a time
ONE_HALF = (1 << 30, 0)  # multiplier and shift
SPLIT_PAYS, MOST_SPLIT = 64, 128  # as sparse.c has them
MOST_COLUMNS = 128  # of a max pool's windows side by side (usual.c)
TILE = 4  # output positions that dense convolutions take at a time
WAITING = 64  # sums that they keep
GATHERED_BYTES = 512  # of inputs
SCALES_HEADER = 4  # bytes of a convolution's parameters before the first row's
LANE_BITS = 5  # most bits of a weight for lanes (sparse.c)


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

    @classmethod
    def at(
        cls, offset: int, channels: int, height: int, width: int, top: int, left: int, bottom: int, right: int
    ) -> Activation:
        """The one that begins, border included, at that byte of the arena."""
        pitch = left + width + right
        plane = pitch * (top + height + bottom)
        first = offset + top * pitch + left
        return cls(channels, height, width, first, pitch, plane, (top, left), (bottom, right))

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
    """A layer of an image, as far as its cost goes. `encoding` says how a convolution's weights are stored,
    `weight_bytes` are those of its weights alone, `nonzeros` its weights that are not zero, and `rows` are its output
    channels that the image stores entries of."""

    kind: str
    source: Activation
    out: Activation
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    clipped: bool
    groups: int
    encoding: str
    weight_bytes: int
    nonzeros: int
    rows: int
    clamped: bool  # to less than all of int8
    second: Activation | None = None  # of add, sub and mul
    rounded: int = 0  # of add and sub: how many operands have another scale than one half
    first: int = 0  # of a copy: the channel that it begins at
    value_bits: int = 0  # of a weight of a sparse convolution


def records(image: bytes, layers: Sequence[Mapping]) -> list[Record]:
    """Every layer of an image (docs/image-format.md). `layers` are as export.image.LayerReport has them."""
    header = HEADER.unpack_from(image)
    tensors, count, tensors_at, layers_at = header[4], header[5], header[14], header[15]
    activations = [Activation.at(*TENSOR.unpack_from(image, tensors_at + i * TENSOR.size)[:-1]) for i in range(tensors)]
    found = []
    for i, layer in zip(range(count), layers, strict=True):
        fields = LAYER.unpack_from(image, layers_at + i * LAYER.size)
        source, out = activations[fields[2]], activations[fields[4]]
        window = fields[5:7], fields[7:9], fields[9:11], fields[11:13], fields[1] == CLIPPED
        parameters_at, weights_at, weight_bytes = fields[16:19]
        rows, second, rounded, clamped = out.channels, None, 0, fields[14:16] != (-128, 127)
        value_bits = image[weights_at + 1] if layer["encoding"] in ("pairs", "rice") else 0
        if layer["kind"] in ELEMENTWISE:
            second = activations[fields[3]]
        if layer["kind"] in ("add", "sub"):
            scales = struct.unpack_from("<4i", image, parameters_at)
            rounded = sum(scale != ONE_HALF for scale in (scales[:2], scales[2:]))
        if layer["kind"] == "conv":
            bias_bytes, shift = image[parameters_at + 1 : parameters_at + 3]
            with_weights = 4 + bias_bytes + (shift == SHIFT_BYTE)  # bytes; a row without has one
            rows = (layer["bytes"] - weight_bytes - SCALES_HEADER - rows) // (with_weights - 1)
        stored = layer["encoding"], weight_bytes, layer["nonzeros"], rows
        found.append(
            Record(
                *(layer["kind"], source, out, *window, fields[13], *stored, clamped, second, rounded),
                first=fields[3],
                value_bits=value_bits,
            )
        )
    return found


def _inside(record: Record, axis: int, bordered: bool = True) -> np.ndarray:
    """Of each window along an axis, how many of its taps lie inside the input, or inside its border."""
    size, outputs = record.source.size[axis], record.out.size[axis]
    before, behind = (b[axis] if bordered else 0 for b in (record.source.border_before, record.source.border_behind))
    taps = np.arange(record.kernel[axis]) * record.dilation[axis] - record.padding[axis]
    at = np.arange(outputs)[:, None] * record.stride[axis] + taps
    return ((at >= -before) & (at < size + behind)).sum(axis=1)


def _is_split(record: Record) -> bool:
    """Whether the columns of a sparse convolution's input are split, so that a stride of 2 becomes 1 (sparse.c)."""
    source, out = record.source, record.out
    inside = all(_inside(record, 1) == record.kernel[1])
    pays = record.weight_bytes * out.positions >= SPLIT_PAYS * source.channels * source.plane
    narrow = source.pitch <= MOST_SPLIT and out.width >= 4
    return record.stride[1] == 2 and record.groups == 1 and inside and narrow and pays


def _sparse_tile(record: Record, stride: int) -> tuple[str, int, int]:
    """The tiles of a sparse convolution (sparse.c), and their rows and columns."""
    out = record.out
    if out.width >= 4 and stride == 1:
        return "tile in lanes" if record.value_bits <= LANE_BITS else "tile by pairs", 1, 4
    if out.width >= 4:
        return "tile by weights", 1, 4
    if out.width >= 2 and out.height >= 2:
        return "tile by weights", 2, 2
    return "position", 1, 1


def _sparse_lines(
    record: Record, whole: np.ndarray, tile: str, rows: int, columns: int
) -> Iterator[tuple[str, int, int, int]]:
    """How one output channel is divided: tiles or single positions, an output row that they lie at, how many lines of
    them lie there and how many are in each. `whole` says of which output rows all windows lie inside."""
    out = record.out
    across, rest = divmod(out.width, columns)
    first, count = int(np.argmax(whole)), int(whole.sum())
    for y, lines in ((first, count), *((y, 1) for y in np.flatnonzero(~whole))):
        tall, below = divmod(lines, rows)
        yield tile, y, tall, across
        yield "position", y, tall * rows, rest
        yield "position", y, below, out.width


def _entries(record: Record) -> int:
    return (record.weight_bytes - FORM_BYTES) // 2 - 1 if record.encoding == "pairs" else record.nonzeros


def _listed(record: Record) -> Counter[str]:
    """What every sparse convolution does: its list of weights is read, and rows without any are filled."""
    form, out, (height, width) = record.encoding, record.out, record.kernel
    rows, empty = record.rows, out.channels - record.rows
    found = Counter({f"conv sparse, {form}: weight": _entries(record)})
    found[f"conv sparse, {form}: byte"] = record.weight_bytes
    found["conv sparse: row, tap"] = rows * height * width
    found.update({"conv sparse: empty row": empty, "conv sparse: empty row, output": empty * out.positions})
    return found


def _sparse_by_vectors(record: Record) -> Counter[str]:
    """The loops of sparse_vectors.c on it."""
    (height, width), rows, entries = record.kernel, record.rows, _entries(record)
    inside = [_inside(record, axis) for axis in (0, 1)]
    down, across = int((inside[0] == height).sum()), int((inside[1] == width).sum())
    fitting = [(r, c) for r, c in ((2, 8), (4, 4), (1, 4), (2, 2)) if down >= r and across >= c]
    tile = (fitting or [(1, 1)])[0]
    lines, columns = -(-down // tile[0]), -(-across // tile[1])
    name = "conv sparse, vectors: {}x{}".format(*tile)
    if tile[1] >= 4 and record.stride[1] != 1:
        name += ", gathered"
    clipped = record.out.positions - down * across
    found = _listed(record)
    if record.out.positions == 1 and down and across:
        return found + Counter({f"conv sparse, {record.encoding}: one position": rows})
    found[f"conv sparse, {record.encoding}: row"] = rows
    if down and across:
        found[f"{name}, line"] = rows * lines
        found[name] = rows * lines * columns
        found[f"{name}, weight"] = entries * lines * columns
    found["conv sparse, vectors: clipped window"] = rows * clipped
    found["conv sparse, vectors: clipped window, tap"] = rows * clipped * height * width
    found["conv sparse, vectors: clipped window, weight"] = entries * clipped
    return found


def _sparse(record: Record) -> Counter[str]:
    """The loops of sparse.c."""
    form, out, (height, width) = record.encoding, record.out, record.kernel
    rows, entries = record.rows, _entries(record)
    inside = [_inside(record, axis) for axis in (0, 1)]
    found = _listed(record)
    if out.positions == 1 and inside[0][0] == height and inside[1][0] == width:
        return found + Counter({f"conv sparse, {form}: one position": rows})
    found[f"conv sparse, {form}: row"] = rows
    stride = record.stride[1]
    if _is_split(record):
        stride = 1
        found["conv sparse: split, byte"] = record.source.channels * record.source.plane
    tile, *size = _sparse_tile(record, stride)
    if tile in ("tile in lanes", "tile by pairs"):
        found[f"conv sparse: {tile}, prepared weight"] = entries * (1 + inside[0][inside[0] < height].sum() / height)
    if tile == "tile in lanes":
        found["conv sparse: flipped byte"] = 2 * record.source.channels * record.source.plane
    for kind, y, lines, across in _sparse_lines(record, inside[0] == height, tile, *size):
        if lines and across:
            found[f"conv sparse: {kind}, part"] += rows
            found[f"conv sparse: {kind}, line"] += rows * lines
            found[f"conv sparse: {kind}"] += rows * lines * across
            found[f"conv sparse: {kind}, weight"] += entries * lines * across * inside[0][y] / height
    columns_outside = width - inside[1]
    starts = np.arange(0, out.width, size[1])
    unusual = np.add.reduceat(columns_outside > 0, starts) > 0
    columns = out.width if record.clamped else int(np.diff(starts, append=out.width)[unusual].sum())
    found["conv sparse: unusual output"] = rows * out.height * columns
    cut = height - inside[0]
    found["conv sparse: cut line"] = rows * np.count_nonzero(cut)
    found["conv sparse: cut line, weight"] = entries * cut.sum() / height
    found["conv sparse: edge"] = rows * out.height * np.count_nonzero(columns_outside)
    found["conv sparse: edge, line"] = rows * inside[0].sum() * np.count_nonzero(columns_outside)
    found["conv sparse: edge, weight"] = entries * inside[0].sum() * columns_outside.sum() / (height * width)
    return found


def _room(record: Record, core: str) -> int:
    """Input channels of one position that a slice of a row has room for (dense.c)."""
    return GATHERED_BYTES // (2 if core in PAIR_CORES else 1) // math.prod(record.kernel)


def _slices(record: Record, positions: int, core: str) -> list[int]:
    """How many times weights are taken, 4 or by vectors 16 at once, of each slice of a row at so many positions."""
    taps, channels = math.prod(record.kernel), record.source.channels // record.groups
    room = _room(record, core) // positions
    counts = [min(room, channels - first) for first in range(0, channels, room)]
    return [-(-count * taps // (VECTOR_BYTES if core == VECTOR_CORE else 4)) for count in counts]


def _dense(record: Record, core: str) -> Counter[str]:
    """The loops of dense.c. A tile is 4 positions, or a single one."""
    out, (height, width), groups = record.out, record.kernel, record.groups
    taps, channels, rows = height * width, record.source.channels // groups, out.channels // groups
    tiled = out.positions // TILE if _room(record, core) >= TILE else 0
    weights = "sixteen weights" if core == VECTOR_CORE else "four weights"
    inside = [_inside(record, axis) for axis in (0, 1)]
    outside = [there - met for there, met in zip((height, width), inside, strict=True)]
    found = Counter({"conv dense: row, output": out.values, "conv dense: group": groups})
    for positions, tiles in ((TILE, tiled), (1, out.positions - tiled * TILE)):
        taken = _slices(record, positions, core) if tiles else []
        blocks = -(-rows // (WAITING // positions))
        gathered = tiles * groups * (blocks if len(taken) > 1 else 1)
        at = f"conv dense: {positions} at once"
        at_once = rows if positions == TILE or core == VECTOR_CORE else -(-rows // TILE)
        found[f"{at}, tile"] = tiles * groups
        found[f"{at}, row"] = tiles * groups * rows
        found[f"{at}, clamped row"] = tiles * groups * rows * record.clamped
        found[f"{at}, block"] = gathered * len(taken)
        found[f"{at}, slice of a row"] = tiles * groups * at_once * len(taken)
        found[f"{at}, {weights}"] = tiles * groups * at_once * sum(taken)
        found[f"{at}, widened four"] = gathered * sum(taken) * (core in PAIR_CORES)
        adjacent = sum(x % out.width + TILE <= out.width for x in range(0, tiled * TILE, TILE))
        kinds = {"positions": tiles}
        if taps == 1:
            kinds = {"points": tiles}
        elif positions == TILE and record.stride[1] == 1:
            kinds = {"neighbours": adjacent, "positions": tiles - adjacent}
        for kind, count in kinds.items():
            found[f"{at}, {kind}: tap"] = gathered // max(tiles, 1) * count * channels * taps
            found[f"{at}, {kind}: line"] = gathered // max(tiles, 1) * count * channels * height
        share = tiles * positions / out.positions * groups * (gathered / (tiles * groups) if tiles else 0)
        found[f"{at}, column outside"] = share * channels * height * out.height * outside[1].sum()
        found[f"{at}, row outside"] = share * channels * width * out.width * outside[0].sum()
        found[f"{at}, clipped window"] = share * np.count_nonzero(outside[0][:, None] + outside[1])
    return found


def _depthwise(record: Record) -> Counter[str] | None:
    """The loops of depthwise.c; None for the layers that it leaves to dense.c."""
    out, (height, width) = record.out, record.kernel
    steps = -(-width // TILE)
    if out.width < TILE:
        sizes = [_inside(record, axis, bordered=False) for axis in (0, 1)]
        products = int(sizes[0].sum() * sizes[1].sum())
        if products + out.positions > GATHERED_BYTES // 4:
            return None
        small = {"channel": 1, "weight": height * width, "output": out.positions, "product": products}
        small["clamped output"] = out.positions * record.clamped
        return Counter({f"conv depthwise, small: {name}": out.channels * count for name, count in small.items()})
    pitch = ((out.width - 1) * record.stride[1] + TILE * steps + 3) // 4 * 4
    extent = (height - 1) * record.dilation[0] + 1
    lines = GATHERED_BYTES // pitch
    if record.dilation[1] > 1 or lines < extent or steps * height > 16:
        return None
    taken = [_inside(record, axis) for axis in (0, 1)]
    whole = (taken[0] == height).all() and (taken[1] == width).all()
    most = (lines - extent) // record.stride[0] + 1
    copied = out.channels // record.source.channels if whole else out.channels  # channels by bands
    heights = [min(most, out.height - y) for y in range(0, out.height, most)]
    copies = sum((n - 1) * record.stride[0] + extent for n in heights)
    at = f"conv depthwise, stride {'1' if record.stride[1] == 1 else 'other'}"
    tiles = out.height * -(-out.width // TILE) * out.channels
    return Counter(
        {
            "conv depthwise: channel": out.channels,
            "conv depthwise: step": out.channels * steps * height,
            "conv depthwise: line": out.lines,
            "conv depthwise: band": copied * len(heights),
            "conv depthwise: copied line": copied * copies,
            "conv depthwise: copied four": copied * copies * pitch / 4,
            f"{at}, tile": tiles,
            f"{at}, clamped tile": tiles * record.clamped,
            f"{at}, step of a tile": tiles * steps * height,
        }
    )


def _conv(record: Record, core: str) -> Counter[str]:
    if record.encoding != "dense":
        return _sparse_by_vectors(record) if core == VECTOR_CORE else _sparse(record)
    depthwise = _depthwise(record) if record.groups == record.source.channels else None
    return _dense(record, core) if depthwise is None else depthwise


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


def _usual_add(record: Record) -> dict[str, int] | None:
    """The same for the usual sum (usual.c), None for any other."""
    a, b, out = record.source, record.second, record.out
    if record.rounded != 1 or record.clamped or not a.size == b.size == out.size or b.channels != out.channels:
        return None
    found = _elementwise(record)
    planes = min(found["line"], out.channels)
    return {"usual value": found["value"], "usual line": found["line"], "usual plane": planes}


def _max_pool(record: Record) -> dict[str, int] | None:
    """The loops of usual.c, None where the layer is not for it."""
    out = record.out
    columns = (out.width - 1) * record.stride[1] + record.kernel[1]
    if record.clamped or columns > MOST_COLUMNS:
        return None
    taps, seen = np.arange(columns) - record.padding[1], _inside(record, 0, not record.clipped)
    before, behind = (0, 0) if record.clipped else (record.source.border_before[1], record.source.border_behind[1])
    inside = int(((taps >= -before) & (taps < record.source.width + behind)).sum())
    fours, rest = divmod(inside, 4)
    counts = {"usual row": out.lines, "usual four columns": out.lines * fours, "usual column": out.lines * rest}
    met = out.channels * int(seen.sum())
    counts |= {"usual four columns, row": met * fours, "usual column, row": met * rest}
    return counts | {"usual output": out.values, "usual tap": out.values * max(record.kernel[1] - 1, 1)}


def _add_by_vectors(record: Record) -> dict[str, int] | None:
    """The loops of usual_mve.c, None where the layer is not for it."""
    a, b, out = record.source, record.second, record.out
    if not a.size == b.size == out.size or b.channels != out.channels:
        return None
    found = _elementwise(record)
    planes, lines, length = min(found["line"], out.channels), found["line"], found["value"] // found["line"]
    if planes > 1 and a.pitch == b.pitch == out.pitch and a.plane == b.plane == out.plane:
        planes, lines, length = 1, 1, (out.channels - 1) * out.plane + length
    return {"plane": planes, "vectors, line": lines, "vector": lines * -(-length // (VECTOR_BYTES // 4))}


def _max_pool_by_vectors(record: Record) -> dict[str, int] | None:
    """The same for a max pool."""
    out, width = record.out, record.kernel[1]
    if (VECTOR_BYTES - 1) * record.stride[1] > 255:
        return None
    across = -(-out.width // VECTOR_BYTES)
    seen = int(_inside(record, 0, not record.clipped).sum())
    columns = {"vector": out.lines * across, "vector, column": out.lines * across * width}
    return columns | {"vector, tap": out.channels * seen * across * width, "row": out.lines}


def _others(record: Record, core: str) -> dict[str, int]:
    """How often each loop of a layer that is no convolution runs, but for those of its border."""
    kind, source, out = record.kind, record.source, record.out
    by_vectors = core == VECTOR_CORE
    if kind == "mean":
        return {"input": source.values, "line": source.lines, "output": out.values}
    usual = None
    if kind == "max_pool":
        usual = _max_pool_by_vectors(record) if by_vectors else _max_pool(record)
    elif kind == "add":
        usual = _add_by_vectors(record) if by_vectors else _usual_add(record)
    if usual is not None:
        return usual
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


def loops(record: Record, core: str) -> dict[str, float]:
    """How often each loop of a layer runs. Weights count as if they were spread evenly over a kernel's taps."""
    kind = record.kind
    if kind == "conv":
        counts = _conv(record, core)
    else:
        counts = {f"{kind}: {name}": count for name, count in _others(record, core).items()}
    counts |= {f"{kind}: layer": 1} | record.out.border
    return {name: count for name, count in counts.items() if count}


def image_loops(image: bytes, layers: Sequence[Mapping], core: str) -> list[dict[str, float]]:
    """The loops of every layer; in the first one, also those that copy the input in."""
    found = records(image, layers)
    counts = [loops(record, core) for record in found]
    if found:
        source = found[0].source
        copied = {"input: value": source.values, "input: line": source.lines, **source.border}
        counts[0] |= {name: counts[0].get(name, 0) + count for name, count in copied.items()}
    return counts


@cache
def costs() -> dict:
    """The file as benchmarks/instruction_costs.py wrote it."""
    return json.loads(COSTS.read_text())


def check_core(core: str) -> None:
    """Raise ValueError where it is none of device.toolchain.CORES."""
    if core not in CORES:
        raise ValueError(f"no core is named {core!r}; choose one of {', '.join(CORES)}")


def _total(counts: Mapping[str, float], core: str) -> int:
    known = costs()["cores"][core]["instructions"]
    return round(sum(known.get(name, 0) * count for name, count in counts.items()))


def instructions(record: Record, core: str) -> int:
    """Of one layer on a core of device.toolchain.CORES. A loop that no measured layer had costs nothing."""
    return _total(loops(record, core), core)


def predict(image: bytes, layers: Sequence[Mapping], core: str) -> list[int]:
    """Instructions of every layer of an image on a core of device.toolchain.CORES."""
    return [_total(counts, core) for counts in image_loops(image, layers, core)]
