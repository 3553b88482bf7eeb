"""How the rows of a convolution are stored: their weights dense, as pairs of bytes or as Rice codes, and what scales
their sums (docs/image-format.md, Weights).

A sparse form is one list of entries through the whole layer: the distance from one non-zero weight to the next, and its
value. The rows lie end to end, each in the order kernel row, kernel column, input channel. Where a distance exceeds
what one entry holds, entries of value 0 stand between; an entry of value 0 behind the last weight ends the list.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from entropi.export.integer import Layer, requantise

DENSE, PAIRS, RICE = range(3)
ENCODING_NAMES = ("dense", "pairs", "rice")
LONGEST_PAIR = 255
FORM_BYTES = 2  # before a sparse list: the Rice parameter, the bits of a value
LEAST_VALUE_BITS = 2
MOST_CODE_BITS = 25
SHIFT_BYTE = 8  # in place of a number of bits: the shift has a byte of its own
LOWEST_FILLER_SHIFT = -15

RowScale = int | tuple[int, int, int]  # the constant that the row puts out; or bias, multiplier, shift


@dataclass(frozen=True)
class Form:
    """One way to store a layer's weights. `entries` [rows] counts the weights that are stored of each row, entries of
    value 0 included; `bytes` is the length of what `encode` returns."""

    encoding: int
    entries: np.ndarray
    bytes: int
    encode: Callable[[], bytes]

    @property
    def name(self) -> str:
        return ENCODING_NAMES[self.encoding]


def shannon_bound(weight: np.ndarray) -> float:
    """The fewest bytes that can hold int8 weights of any shape, were positions and values independent: the positions at
    the array's density, and the entropy of its non-zero values."""
    values = weight[weight != 0].view(np.uint8)
    positions = weight.size * _entropy(np.array([len(values), weight.size - len(values)]))
    return (positions + len(values) * _entropy(np.bincount(values))) / 8


def _entropy(counts: np.ndarray) -> float:
    """Bits a symbol."""
    p = counts[counts > 0] / max(counts.sum(), 1)
    return float(p @ np.log2(1 / p))


def forms(weight: np.ndarray) -> tuple[Form, Form, Form]:
    """Every way to store int8 weights [rows, inputs of a group, kernel height, kernel width], by its encoding."""
    rows = len(weight)
    flat = weight.transpose(0, 2, 3, 1).reshape(-1)
    dense = Form(DENSE, np.full(rows, flat.size // rows), flat.size, weight.tobytes)
    return dense, _pairs(flat, rows), _rice(flat, rows)


def value_bits(weight: np.ndarray) -> int:
    """The fewest bits in which every int8 weight is a two's complement number, as sparse forms store them."""
    most = int(np.where(weight < 0, ~weight, weight).max(initial=0))
    return max(most.bit_length() + 1, LEAST_VALUE_BITS)


def _entries(flat: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances, none above `longest`, and values (uint8) of the list's entries, its end included."""
    at = np.append(np.flatnonzero(flat), flat.size)
    distances = np.diff(at, prepend=-1)
    fillers = (distances - 1) // longest
    number = np.cumsum(fillers + 1) - 1
    divided = np.full(number[-1] + 1, longest)
    divided[number] = distances - fillers * longest
    values = np.zeros(len(divided), np.uint8)
    values[number[:-1]] = flat[at[:-1]].view(np.uint8)
    return divided, values


def _in_rows(distances: np.ndarray, length: int, rows: int) -> np.ndarray:
    """How many entries lie in each row, the end of the list in none."""
    at = np.cumsum(distances[:-1]) - 1
    return np.bincount(at // length, minlength=rows)


def _pairs(flat: np.ndarray, rows: int) -> Form:
    distances, values = _entries(flat, LONGEST_PAIR)

    def encode() -> bytes:
        pairs = np.stack([values, distances.astype(np.uint8)], axis=1).tobytes()
        return bytes([0, value_bits(flat)]) + pairs

    return Form(PAIRS, _in_rows(distances, flat.size // rows, rows), FORM_BYTES + 2 * len(values), encode)


def _rice(flat: np.ndarray, rows: int) -> Form:
    """Rice codes with the parameter k that takes the fewest bits; it is near the logarithm of the mean distance."""

    def coded(k: int) -> tuple[int, int, np.ndarray, np.ndarray, np.ndarray]:
        distances, values = _entries(flat, (longest + 1 - k) << k)
        lengths = ((distances - 1) >> k) + (1 + k + bits)
        return int(lengths.sum()), k, distances, values, lengths

    bits = value_bits(flat)
    longest = MOST_CODE_BITS - 1 - bits  # zeros and remainder bits of one code
    near = min((flat.size // (int(np.count_nonzero(flat)) + 1)).bit_length(), longest)
    length, k, distances, values, lengths = min(map(coded, range(max(near - 3, 0), near + 1)), key=lambda c: c[0])

    def encode() -> bytes:
        codes = (1 << k | (distances - 1) & ((1 << k) - 1)) << bits | values & ((1 << bits) - 1)
        places = np.arange(MOST_CODE_BITS - 1, -1, -1)
        stream = (codes[:, None] >> places & 1).astype(np.uint8)
        return bytes([k, bits]) + np.packbits(stream[places < lengths[:, None]]).tobytes()

    return Form(RICE, _in_rows(distances, flat.size // rows, rows), FORM_BYTES + -(-length // 8), encode)


def row_scales(layer: Layer, zero_point: int, entries: np.ndarray) -> list[RowScale]:
    """What each row of a convolution needs beside its weights. A row without weights puts out a constant, and that is
    all it needs where no `entries` [rows] are stored of it; `zero_point` is the output's."""
    weighted = layer.weight.reshape(len(layer.weight), -1).any(axis=1)
    # Where entries of value 0 are stored, the constant is given by a scale that widens no field of the other rows.
    shift = max((shift for (_, shift), kept in zip(layer.scales, weighted, strict=True) if kept), default=1)
    shift = min(max(shift, LOWEST_FILLER_SHIFT), 1)
    rows: list[RowScale] = []
    for row, constant in enumerate(_constants(layer, zero_point)):
        if weighted[row]:
            rows.append((int(layer.bias[row]), *layer.scales[row]))
        elif entries[row]:
            rows.append(((constant - zero_point) << (1 - shift), 1 << 30, shift))
        else:
            rows.append(constant)
    return rows


def _constants(layer: Layer, zero_point: int) -> list[int]:
    """A convolution's outputs where every sum is the bias, in the device's arithmetic (requantise in values.h)."""
    multiplier, shift = np.array(layer.scales, np.int64).T
    shifted = (layer.bias.astype(np.int64) << np.maximum(shift, 0)).astype(np.int32).astype(np.int64)  # it may wrap
    scaled = requantise(shifted, multiplier, np.minimum(shift, 0))
    return (scaled + zero_point).astype(np.int32).clip(layer.low, layer.high).tolist()


def encode_scales(rows: Sequence[RowScale]) -> bytes:
    """A convolution's parameters, row after row, with the bytes for a bias and the bits for a shift that it needs."""
    scales = [row for row in rows if isinstance(row, tuple)] or [(0, 0, 0)]
    lowest = min(shift for *_, shift in scales)
    shift_bits = max(shift - lowest for *_, shift in scales).bit_length()
    bias_bits = max((bias if bias >= 0 else ~bias).bit_length() + 1 for bias, *_ in scales)
    own_byte = bias_bits + shift_bits > 32
    if own_byte:
        shift_bits = 0
    size = -(-(bias_bits + shift_bits) // 8)
    data = bytearray(struct.pack("<bBBx", lowest, size, SHIFT_BYTE if own_byte else shift_bits))
    for row in rows:
        if isinstance(row, int):
            data += struct.pack("<b", row)
            continue
        bias, multiplier, shift = row
        field = bias if own_byte else bias << shift_bits | (shift - lowest)
        data += struct.pack("<i", multiplier) + field.to_bytes(size, "little", signed=True)
        if own_byte:
            data.append(shift - lowest)
    return bytes(data)
