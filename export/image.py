"""The device image: an integer network as the bytes that the C runtime reads (docs/image-format.md)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from entropi.export.costs import DEFAULT_CORE, Activation, Record, instructions
from entropi.export.integer import CONV, COPY, KIND_NAMES, MEAN, SOFTMAX, TABLE, Layer, Network
from entropi.export.layout import CLIPPED, HEADER, LAYER, NO_TENSOR, PADDED, TENSOR
from entropi.export.plan import Optimize, Place, Plan, plan
from entropi.export.rows import DENSE, Form, encode_scales, forms, row_scales, shannon_bound, value_bits

MAGIC = b"ENTR"
VERSION = 6
INT32_MAX = (1 << 31) - 1
MAX_WINDOW = 1 << 24
GATHERED_BYTES = 512  # of scratch, for the inputs of a dense convolution
MAX_MEAN = (1 << 21) - 1


class ImageError(ValueError):
    """The network exceeds a limit of the image format."""


@dataclass(frozen=True)
class Centering:
    """The head sees x * gain, where x = (feature - center) * scale / UNIT, rounded and clamped to int8: features around
    zero that deviate alike, of mean squared norm 1 on the target. Without scales, all are UNIT.

    centers: int8 [F]; scales: uint8 [F].
    """

    UNIT: ClassVar[int] = 16
    DEVIATION: ClassVar[int] = 24  # of x, root mean square: clamped beyond 5 deviations

    centers: np.ndarray
    gain: float
    scales: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.scales is None:
            object.__setattr__(self, "scales", np.full(len(self.centers), self.UNIT, np.uint8))

    @classmethod
    def of(cls, features: np.ndarray) -> Centering:
        """From int8 features [N, F] of the calibration images. One that is the same in all of them is not scaled."""
        centers = np.floor(features.mean(axis=0) + 0.5).clip(-128, 127).astype(np.int8)
        deviations = np.sqrt(np.square(features.astype(float) - centers).mean(axis=0))
        wanted = np.divide(cls.UNIT * cls.DEVIATION, deviations, out=np.full(len(centers), 16.0), where=deviations > 0)
        centering = cls(centers, 1.0, wanted.round().clip(1, 255).astype(np.uint8))
        squared = np.square(centering.standardised(features).astype(np.int32)).sum(axis=1).mean()
        return replace(centering, gain=float(1 / np.sqrt(squared)) if squared else 1.0)

    def standardised(self, features: np.ndarray) -> np.ndarray:
        """x, int8 [N, F], of int8 features [N, F], as device/src/weights.c has it."""
        scaled = (features.astype(np.int32) - self.centers) * self.scales
        return ((scaled + self.UNIT // 2) // self.UNIT).clip(-128, 127).astype(np.int8)


@dataclass(frozen=True)
class LayerReport:
    """What one layer costs in the image and on the device.

    encoding: how the weights are stored, "" where there are none; reason: why so, with what the other ways take;
    nonzeros: the stored weights that are not zero; bytes: weights and parameters; bound: the fewest bytes that the
    weights alone can take (shannon_bound); scratch: bytes of arena that the layer's kernel works in, beside tensors."""

    name: str
    kind: str
    shape: tuple[int, int, int]
    encoding: str
    reason: str
    weights: int
    nonzeros: int
    macs: int
    dense_macs: int
    bytes: int
    bound: float
    scratch: int


@dataclass(frozen=True)
class _Stored:
    """A convolution's weights and parameters as they stand in the image."""

    form: Form
    parameters: bytes
    reason: str

    def scratch(self, layer: Layer) -> int:
        """Bytes that the layer's kernel works in: gathered inputs, or the list of the longest row and where its taps
        and its blocks of 16 begin (device/src/rows.h)."""
        if self.form.encoding == DENSE:
            return GATHERED_BYTES
        taps, longest = layer.kernel[0] * layer.kernel[1], int(self.form.entries.max())
        return 4 * (2 * (taps + 1) + 2 * (longest + 1) + longest // 16 + 2)


def _check(network: Network, layer: Layer, places: dict[int, Place]) -> None:
    """The limits that entropi_open enforces, told while the layer still has a name."""
    taps = layer.kernel[0] * layer.kernel[1]
    if layer.kind == CONV and taps > 121:
        raise ImageError(f"{layer.name}: a kernel of {taps} taps; the format holds 121 (11x11); use a smaller kernel")
    if layer.kind == CONV:
        magnitudes = np.abs(layer.weight.reshape(len(layer.weight), -1).astype(np.int64)).sum(axis=1)
        rounding = np.array([1 << -shift >> 1 if shift < 0 else 0 for _, shift in layer.scales])
        reaches = np.abs(layer.bias.astype(np.int64)) + 128 * magnitudes + rounding
        reach = int(reaches.max(where=magnitudes > 0, initial=0))  # rows without weights put out constants
        if reach > INT32_MAX:
            raise ImageError(f"{layer.name}: sums reach {reach}; int32 holds {INT32_MAX}; lower weights or biases")
        span = _window_bytes(network, layer, places[layer.inputs[0]])
        if span > MAX_WINDOW:
            raise ImageError(f"{layer.name}: windows of {span} bytes; the format holds {MAX_WINDOW}; shrink the input")
    source = network.tensors[layer.inputs[0]]
    if layer.kind == MEAN and source.height * source.width > MAX_MEAN:
        raise ImageError(
            f"{layer.name}: a mean of {source.height * source.width} values; the format holds {MAX_MEAN}; pool first"
        )
    largest = max(*layer.kernel, *layer.stride, *layer.pad, *layer.dilation)
    if largest > 255:
        raise ImageError(f"{layer.name}: kernel, stride, padding or dilation of {largest}; the format holds 255")


def _window_bytes(network: Network, layer: Layer, place: Place) -> int:
    """From the first byte of a convolution's window to its last, in all channels."""
    source, (height, width) = network.tensors[layer.inputs[0]], layer.extent
    pitch = place.border[1] + source.width + place.border[3]
    return (source.channels - 1) * (place.bytes // source.channels) + (height - 1) * pitch + width


def _store(
    network: Network, layer: Layer, places: dict[int, Place], optimize: Optimize, core: str, forms: Sequence[Form]
) -> _Stored:
    """A convolution in the form that `optimize` asks for, of two that cost the same the smaller one."""
    ways = []
    for form in forms:
        parameters = encode_scales(row_scales(layer, network.tensors[layer.output].zero_point, form.entries))
        size = form.bytes + len(parameters)
        cost = size if optimize == "size" else instructions(_record(network, layer, places, form), core)
        ways.append((cost, size, form, parameters))
    ways.sort(key=lambda way: way[:2])
    unit = "bytes" if optimize == "size" else f"predicted instructions on {core}"
    costs = ", ".join(f"{form.name} {cost:,}" for cost, _, form, _ in ways)
    _, _, form, parameters = ways[0]
    return _Stored(form, parameters, f"fewest {unit}: {costs}")


def _record(network: Network, layer: Layer, places: dict[int, Place], form: Form) -> Record:
    """A convolution as the cost model sees it, its weights in that form."""
    source, out = (
        Activation.at(places[i].offset, *network.tensors[i].shape, *places[i].border)
        for i in (layer.inputs[0], layer.output)
    )
    return Record(
        "conv", source, out, layer.kernel, layer.stride, layer.pad, layer.dilation, layer.clipped, layer.groups,
        form.name, form.bytes, int(np.count_nonzero(layer.weight)), int(np.count_nonzero(form.entries)),
        clamped=(layer.low, layer.high) != (-128, 127), value_bits=value_bits(layer.weight),
    )  # fmt: skip


def scratch_of(layers: Sequence[LayerReport]) -> dict[int, int]:
    """What a plan has to place beside the tensors: bytes of scratch, by the number of the layer that works in them."""
    return {number: layer.scratch for number, layer in enumerate(layers) if layer.scratch}


def write_image(
    network: Network,
    centering: Centering,
    optimize: Optimize = "size",
    core: str = DEFAULT_CORE,
    plan: Callable[[Network, Optimize, Mapping[int, int]], Plan] = plan,
    forms: Callable[[np.ndarray], Sequence[Form]] = forms,
) -> tuple[bytes, list[LayerReport]]:
    """The image of a network and what each of its layers costs.

    `optimize` says what counts where bytes and instructions conflict: of the `forms` of a weight, the smallest is
    stored ("size"), or the one that takes the fewest instructions on `core` ("speed"), and tensors lie, with or without
    borders, where `plan` says. Raises ImageError when a limit of the format is exceeded.
    """
    places = plan(network, optimize, {}).places
    convolutions = {}
    for number, layer in enumerate(network.layers):
        _check(network, layer, places)
        if layer.kind == CONV:
            convolutions[number] = _store(network, layer, places, optimize, core, forms(layer.weight))
    scratch = {number: stored.scratch(network.layers[number]) for number, stored in convolutions.items()}
    planned = plan(network, optimize, scratch)
    places = planned.places
    numbers = {index: number for number, index in enumerate(sorted(places))}
    body = bytearray(HEADER.size)
    reports = []
    records = []

    def append(data: bytes) -> int:
        body.extend(bytes(-len(body) % 4))
        body.extend(data)
        return len(body) - len(data)

    for number, layer in enumerate(network.layers):
        encoding, weights_at, weights = CLIPPED if layer.clipped else PADDED, 0, b""
        stored, scratch_at = convolutions.get(number), 0
        if stored:
            encoding, parameters, weights = stored.form.encoding, stored.parameters, stored.form.encode()
            weights_at, scratch_at = append(weights), planned.scratch[number].offset
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
                weights_at, len(weights), scratch_at,
            )
        )  # fmt: skip
        reports.append(_report(network, layer, stored, len(weights) + len(parameters), scratch.get(number, 0)))

    tensors_at = append(b"".join(_tensor_record(network, index, places[index]) for index in sorted(places)))
    layers_at = append(b"".join(records))
    centers_at = append(centering.centers.tobytes())
    scales_at = append(centering.scales.tobytes())
    append(b"")
    source, out = network.tensors[network.input], network.tensors[network.output]
    length = len(body) + 4
    HEADER.pack_into(
        body, 0, MAGIC, VERSION, HEADER.size, length, len(places), len(network.layers), numbers[network.input],
        numbers[network.output], planned.bytes, out.channels * out.height * out.width, source.scale, centering.gain,
        centers_at, scales_at, tensors_at, layers_at, source.zero_point,
    )  # fmt: skip
    return bytes(body) + struct.pack("<I", zlib.crc32(body)), reports


def _tensor_record(network: Network, index: int, place: Place) -> bytes:
    t = network.tensors[index]
    if max(t.shape) > 0xFFFF:
        raise ImageError(f"tensor {index}: shape {t.shape} exceeds the format's 65535")
    return TENSOR.pack(place.offset, *t.shape, *place.border, t.zero_point)


def _report(network: Network, layer: Layer, stored: _Stored | None, size: int, scratch: int) -> LayerReport:
    out = network.tensors[layer.output]
    positions = out.height * out.width
    weights = 0 if layer.weight is None else layer.weight.size
    nonzeros = 0 if layer.weight is None else int(np.count_nonzero(layer.weight))
    return LayerReport(
        name=layer.name,
        kind=KIND_NAMES[layer.kind],
        shape=out.shape,
        encoding=stored.form.name if stored else "",
        reason=stored.reason if stored else "",
        weights=weights,
        nonzeros=nonzeros,
        macs=(weights if stored and stored.form.encoding == DENSE else nonzeros) * positions,
        dense_macs=weights * positions,
        bytes=size,
        bound=0.0 if layer.weight is None else shannon_bound(layer.weight),
        scratch=scratch,
    )
