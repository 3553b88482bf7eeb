"""The integer network: the few layers that the device knows, and what may be changed about them without changing a byte
of what they compute."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

CONV, MAX_POOL, ADD, MEAN, AVERAGE_POOL, SUB, MUL, TABLE, COPY, SOFTMAX = range(1, 11)
KIND_NAMES = {
    CONV: "conv",
    MAX_POOL: "max_pool",
    ADD: "add",
    MEAN: "mean",
    AVERAGE_POOL: "average_pool",
    SUB: "sub",
    MUL: "mul",
    TABLE: "table",
    COPY: "copy",
    SOFTMAX: "softmax",
}
WINDOWED = (CONV, MAX_POOL, AVERAGE_POOL)
ADD_HEADROOM_BITS = 20


@dataclass(frozen=True)
class Tensor:
    """An int8 activation [channels, height, width]; real value = (q - zero_point) * scale. `name` is that of the model
    it was read from."""

    channels: int
    height: int
    width: int
    scale: float
    zero_point: int
    name: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Layer:
    """One device layer. `pad` is (top, left); what is needed below and to the right follows from the shapes.

    conv: weight int8 [out, in / groups, kh, kw], bias int32 [out] with the input's zero point folded in, one
    (multiplier, shift) an output channel. max_pool, average_pool: `clipped` windows end at the edge, others see the
    zero point beyond it. add, sub, mul: the second input has the first one's size or 1 along every axis. add, sub:
    three (multiplier, shift), for either input and the output. mul, mean: one. table: int8 [256], what the layer makes
    of -128 ... 127. copy: to channels `first` and on of the output, one layer for each part of a concatenation.
    softmax: int32 [256], the exponentials of the differences to the largest (softmax.py).
    """

    kind: int
    name: str
    inputs: tuple[int, ...]
    output: int
    low: int
    high: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    scales: tuple[tuple[int, int], ...] = ()
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    clipped: bool = False
    table: np.ndarray | None = None
    first: int = 0

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width from a window's first value to its last, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))


@dataclass
class Network:
    """Layers in execution order over numbered tensors."""

    tensors: dict[int, Tensor]
    input: int
    output: int
    layers: list[Layer] = field(default_factory=list)

    def last_writers(self) -> dict[int, int]:
        """From a tensor to the number of the layer after which it is whole: several layers write a concatenation."""
        return {layer.output: number for number, layer in enumerate(self.layers)}


def quantise_multiplier(real: float) -> tuple[int, int]:
    """real = multiplier / 2^31 * 2^shift with 2^30 <= multiplier < 2^31 (TFLM's QuantizeMultiplier)."""
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def requantise(x: np.ndarray, multiplier: np.ndarray | int, shift: np.ndarray | int) -> np.ndarray:
    """round(x * multiplier / 2^31 * 2^shift) of int64 `x`, rounded twice as the device does (device/src/values.h).

    The caller sees to it that x * 2^shift stays within 32 bits, as the device's sums must.
    """
    left, right = np.maximum(shift, 0), np.maximum(np.negative(shift), 0)
    high = ((x << left) * multiplier + (1 << 30)) >> 31
    return (high + (1 << right >> 1) - ((high < 0) & (right > 0))) >> right


def window_span(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int = 1) -> tuple[int, int]:
    """First and one past the last kernel index that meets data at any output position, along one axis.

    Where none does, one index is kept: a kernel is never empty. Nor is more cut off before the first than the padding
    holds: a dilated kernel would begin inside the data, and padding is never negative.
    """
    met = [k for k in range(kernel) if any(0 <= o * stride + k * dilation - pad < size for o in range(out))]
    return (min(met[0], pad // dilation), met[-1] + 1) if met else (0, 1)


def mean_scale(source: Tensor, out: Tensor) -> tuple[int, int]:
    """TFLM's multiplier for MEAN with the division by the number of values folded in."""
    multiplier, shift = quantise_multiplier(source.scale / out.scale)
    count = source.height * source.width
    room = max(0, min(count.bit_length() - 1, 32, 31 + shift))
    return (multiplier << room) // count, shift - room


def cropped(layer: Layer, source: Tensor, out: Tensor) -> Layer:
    """A convolution without the rows and columns of its kernel that only ever meet padding."""
    axes = zip(source.shape[1:], out.shape[1:], layer.kernel, layer.stride, layer.pad, layer.dilation, strict=True)
    (y0, y1), (x0, x1) = (window_span(*axis) for axis in axes)
    return replace(
        layer,
        weight=np.ascontiguousarray(layer.weight[:, :, y0:y1, x0:x1]),
        kernel=(y1 - y0, x1 - x0),
        pad=(layer.pad[0] - y0 * layer.dilation[0], layer.pad[1] - x0 * layer.dilation[1]),
    )


def folded(layer: Layer, source: Tensor) -> Layer:
    """A convolution with its input's zero point in the bias: bias - zero_point * sum of the row's weights.

    Exact because what a window reaches beyond the map counts as the zero point."""
    sums = layer.weight.astype(np.int64).sum(axis=(1, 2, 3))
    return replace(layer, bias=layer.bias.astype(np.int64) - source.zero_point * sums)
