"""The device image: an integer network as the bytes that the C runtime reads (docs/image-format.md)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np

from entropi.export.integer import CONV, COPY, KIND_NAMES, MEAN, SOFTMAX, TABLE, Layer, Network
from entropi.export.plan import Place, plan

MAGIC = b"ENTR"
VERSION = 2
HEADER = struct.Struct("<4sHHIHHHHIIIffIIIb3xII")
TENSOR = struct.Struct("<IHHHBBBBbx")
LAYER = struct.Struct("<BBHHHBBBBBBBBHbbIII")
SPARSE, DENSE = 0, 1
OVER_BORDER, CLIPPED = 0, 1
NO_TENSOR = 0xFFFF
ESCAPE = 255
INT32_MAX = (1 << 31) - 1
MAX_CONV_INPUT = 1 << 24
MAX_MEAN = (1 << 21) - 1


class ImageError(ValueError):
    """The network exceeds a limit of the image format."""


@dataclass(frozen=True)
class Centering:
    """The head sees x = (feature - center) * gain: features around zero, of mean squared norm 1 on the target."""

    centers: np.ndarray
    gain: float

    @classmethod
    def of(cls, features: np.ndarray) -> Centering:
        """From int8 features [N, F] of the calibration images."""
        centers = np.floor(features.mean(axis=0) + 0.5).clip(-128, 127).astype(np.int8)
        squared = ((features.astype(np.int32) - centers) ** 2).sum(axis=1).mean()
        return cls(centers, float(1 / np.sqrt(squared)) if squared else 1.0)


@dataclass(frozen=True)
class LayerReport:
    """What one layer costs in the image and on the device; nonzeros are the stored weights that are not zero."""

    name: str
    kind: str
    shape: tuple[int, int, int]
    encoding: str
    weights: int
    nonzeros: int
    macs: int
    dense_macs: int
    bytes: int


def encode_rows(weight: np.ndarray) -> bytes:
    """Sparse rows of int8 weights [rows, row length].

    u32 length of the deltas; u16 non-zeros of each row; for each non-zero the zeros skipped since the last one (u8, a
    255 skips 255 and carries no weight); then the int8 values. Raises ImageError above 65,535 non-zeros a row.
    """
    counts = np.count_nonzero(weight, axis=1)
    if counts.max(initial=0) > 0xFFFF:
        raise ImageError(f"a row has {counts.max()} non-zero weights; the format holds 65535; prune further")
    deltas = bytearray()
    for row in weight:
        skipped = np.diff(np.flatnonzero(row), prepend=-1) - 1
        for gap in skipped.tolist():
            deltas += bytes([ESCAPE]) * (gap // ESCAPE)
            deltas.append(gap % ESCAPE)
    return (
        struct.pack("<I", len(deltas)) + counts.astype("<u2").tobytes() + bytes(deltas) + weight[weight != 0].tobytes()
    )


def _conv_parameters(layer: Layer) -> bytes:
    multipliers, shifts = zip(*layer.scales, strict=True)
    return (
        layer.bias.astype("<i4").tobytes()
        + np.array(multipliers, "<i4").tobytes()
        + np.array(shifts, np.int8).tobytes()
    )


def _check(network: Network, layer: Layer, places: dict[int, Place]) -> None:
    """The limits that entropi_open enforces, told while the layer still has a name."""
    taps = layer.kernel[0] * layer.kernel[1]
    if layer.kind == CONV and taps > 121:
        raise ImageError(f"{layer.name}: a kernel of {taps} taps; the format holds 121 (11x11); use a smaller kernel")
    if layer.kind == CONV:
        magnitudes = np.abs(layer.weight.reshape(len(layer.weight), -1).astype(np.int64)).sum(axis=1)
        rounding = np.array([1 << -shift >> 1 if shift < 0 else 0 for _, shift in layer.scales])
        reach = int((np.abs(layer.bias.astype(np.int64)) + 128 * magnitudes + rounding).max())
        if reach > INT32_MAX:
            raise ImageError(f"{layer.name}: sums reach {reach}; int32 holds {INT32_MAX}; lower weights or biases")
        size = places[layer.inputs[0]].bytes
        if size > MAX_CONV_INPUT:
            raise ImageError(f"{layer.name}: an input of {size} bytes; the format holds {MAX_CONV_INPUT}; shrink it")
    source = network.tensors[layer.inputs[0]]
    if layer.kind == MEAN and source.height * source.width > MAX_MEAN:
        raise ImageError(
            f"{layer.name}: a mean of {source.height * source.width} values; the format holds {MAX_MEAN}; pool first"
        )
    largest = max(*layer.kernel, *layer.stride, *layer.pad, *layer.dilation)
    if largest > 255:
        raise ImageError(f"{layer.name}: kernel, stride, padding or dilation of {largest}; the format holds 255")


def write_image(network: Network, centering: Centering) -> tuple[bytes, list[LayerReport]]:
    """The image of a network and what each of its layers costs.

    Raises ImageError when a limit of the format is exceeded.
    """
    places, activation_bytes = plan(network)
    numbers = {index: number for number, index in enumerate(sorted(places))}
    body = bytearray(HEADER.size)
    reports = []
    records = []
    row_entries = 0

    def append(data: bytes) -> int:
        body.extend(bytes(-len(body) % 4))
        body.extend(data)
        return len(body) - len(data)

    for layer in network.layers:
        _check(network, layer, places)
        out = network.tensors[layer.output]
        encoding, weights_at, weights = CLIPPED if layer.clipped else OVER_BORDER, 0, b""
        if layer.kind == CONV:
            rows = layer.weight.reshape(len(layer.weight), -1)
            encoding, weights = SPARSE, encode_rows(rows)
            if rows.size <= len(weights):
                encoding, weights = DENSE, rows.tobytes()
            else:
                row_entries = max(row_entries, int(np.count_nonzero(rows, axis=1).max()))
            parameters = _conv_parameters(layer)
            weights_at = append(weights)
        elif layer.kind in (TABLE, SOFTMAX):
            parameters = layer.table.tobytes()
        else:
            parameters = b"".join(struct.pack("<ii", *s) for s in layer.scales)
        parameters_at = append(parameters) if parameters else HEADER.size
        second = numbers[layer.inputs[1]] if len(layer.inputs) > 1 else NO_TENSOR
        if layer.kind == COPY:
            second = layer.first
        records.append(
            LAYER.pack(
                layer.kind, encoding, numbers[layer.inputs[0]], second, numbers[layer.output], *layer.kernel,
                *layer.stride, *layer.pad, *layer.dilation, layer.groups, layer.low, layer.high, parameters_at,
                weights_at, len(weights),
            )
        )  # fmt: skip
        stored = ("sparse", "dense")[encoding] if layer.kind == CONV else ""
        reports.append(_report(network, layer, stored, len(weights) + len(parameters)))

    tensors_at = append(b"".join(_tensor_record(network, index, places[index]) for index in sorted(places)))
    layers_at = append(b"".join(records))
    centers_at = append(centering.centers.tobytes())
    append(b"")
    source, out = network.tensors[network.input], network.tensors[network.output]
    length = len(body) + 4
    HEADER.pack_into(
        body, 0, MAGIC, VERSION, HEADER.size, length, len(places), len(network.layers), numbers[network.input],
        numbers[network.output], activation_bytes, row_entries, out.channels * out.height * out.width, source.scale,
        centering.gain, centers_at, tensors_at, layers_at, source.zero_point, 0, 0,
    )  # fmt: skip
    return bytes(body) + struct.pack("<I", zlib.crc32(body)), reports


def _tensor_record(network: Network, index: int, place: Place) -> bytes:
    t = network.tensors[index]
    if max(t.shape) > 0xFFFF or max(place.border) > 255:
        raise ImageError(f"tensor {index}: shape {t.shape} or border {place.border} exceeds the format's 65535 and 255")
    return TENSOR.pack(place.offset, *t.shape, *place.border, t.zero_point)


def _report(network: Network, layer: Layer, encoding: str, size: int) -> LayerReport:
    out = network.tensors[layer.output]
    positions = out.height * out.width
    weights = 0 if layer.weight is None else layer.weight.size
    nonzeros = 0 if layer.weight is None else int(np.count_nonzero(layer.weight))
    return LayerReport(
        name=layer.name,
        kind=KIND_NAMES[layer.kind],
        shape=out.shape,
        encoding=encoding,
        weights=weights,
        nonzeros=nonzeros,
        macs=(nonzeros if encoding == "sparse" else weights) * positions,
        dense_macs=weights * positions,
        bytes=size,
    )
