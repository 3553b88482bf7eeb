"""The integer network: what an int8 TFLite model computes, in the few layers that the device knows.

PAD operators disappear into the layer that reads them, kernel taps that only ever meet padding are cut off, and the
zero point of a convolution's input is folded into its bias. All of it is exact: the outputs stay byte for byte those of
tflite-micro.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field, replace

import numpy as np

from entropi.export.graph import UnsupportedError

CONV, MAX_POOL, ADD, MEAN = 1, 2, 3, 4
KIND_NAMES = {CONV: "conv", MAX_POOL: "max_pool", ADD: "add", MEAN: "mean"}
ADD_HEADROOM_BITS = 20


@dataclass(frozen=True)
class Tensor:
    """An int8 activation [channels, height, width]; real value = (q - zero_point) * scale."""

    channels: int
    height: int
    width: int
    scale: float
    zero_point: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width


@dataclass(frozen=True)
class Layer:
    """One device layer. `pad` is (top, left); what is needed below and to the right follows from the shapes.

    conv: weight int8 [out, in, kh, kw], bias int32 [out] with the input's zero point folded in, one (multiplier, shift)
    an output channel. add: three (multiplier, shift), for either input and the output. mean: one.
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


@dataclass
class Network:
    """Layers in execution order over numbered tensors."""

    tensors: dict[int, Tensor]
    input: int
    output: int
    layers: list[Layer] = field(default_factory=list)


def quantise_multiplier(real: float) -> tuple[int, int]:
    """real = multiplier / 2^31 * 2^shift with 2^30 <= multiplier < 2^31 (TFLM's QuantizeMultiplier)."""
    if real == 0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def window_span(size: int, out: int, kernel: int, stride: int, pad: int) -> tuple[int, int]:
    """First and one past the last kernel index that meets data at any output position, along one axis.

    Where none does, one index is kept: a kernel is never empty.
    """
    met = [k for k in range(kernel) if any(0 <= o * stride + k - pad < size for o in range(out))]
    return (met[0], met[-1] + 1) if met else (0, 1)


def _same_pad(size: int, out: int, kernel: int, stride: int) -> int:
    return max((out - 1) * stride + kernel - size, 0) // 2


class _TfliteReader:
    """Walks the operators of one subgraph and collects layers and problems."""

    def __init__(self, model: bytes):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        try:
            self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
        except (struct.error, TypeError, ValueError) as error:
            raise UnsupportedError(
                f"these {len(model)} bytes are no TFLite model, or a damaged one ({error}); give an int8 .tflite file"
            ) from error
        self.graph = self.model.subgraphs[0]
        self.codes = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self.problems: list[str] = []
        self.padded: dict[int, tuple[int, tuple[int, int]]] = {}
        self.alias: dict[int, int] = {}
        self.network = Network({}, int(self.graph.inputs[0]), int(self.graph.outputs[0]))

    def read(self) -> Network:
        if len(self.graph.inputs) != 1 or len(self.graph.outputs) != 1:
            self.problems.append(
                f"the model has {len(self.graph.inputs)} inputs and {len(self.graph.outputs)} outputs; "
                "give it one of each"
            )
        self._tensor(self.network.input)
        for op in self.graph.operators:
            code = self.model.operatorCodes[op.opcodeIndex]
            name = self.codes.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM")
            handler = getattr(self, f"_{name.lower()}", None)
            if handler is None:
                where = self._name(op.outputs[0])
                self.problems.append(f"{where}: operator {name} is not supported; replace it by a supported one")
            else:
                handler(op, self._name(op.outputs[0]))
        if self.problems:
            raise UnsupportedError("cannot put this model on the device:\n  " + "\n  ".join(self.problems))
        self.network.output = self.alias.get(self.network.output, self.network.output)
        return self.network

    def _name(self, index: int) -> str:
        """A tensor's name; the converter joins the names of fused operators with semicolons, the last one first."""
        return self.graph.tensors[index].name.decode().split(";")[0]

    def _data(self, index: int, dtype: type) -> np.ndarray:
        tensor = self.graph.tensors[index]
        return np.frombuffer(bytes(self.model.buffers[tensor.buffer].data), dtype).reshape(tensor.shape)

    def _tensor(self, index: int) -> Tensor:
        index = self.alias.get(index, index)
        if index in self.padded:
            self.problems.append(
                f"{self._name(index)}: PAD before anything but CONV_2D and MAX_POOL_2D is not supported; remove it"
            )
        if index not in self.network.tensors:
            t = self.graph.tensors[index]
            shape = [int(n) for n in t.shape[1:]]
            if t.type != self.schema.TensorType.INT8 or len(shape) not in (1, 3):
                self.problems.append(
                    f"{t.name.decode()}: an activation must be int8 [1, H, W, C]; quantise the whole model"
                )
                self.network.tensors[index] = Tensor(1, 1, 1, 1.0, 0)
            else:
                height, width, channels = shape if len(shape) == 3 else (1, 1, shape[0])
                q = t.quantization
                self.network.tensors[index] = Tensor(channels, height, width, float(q.scale[0]), int(q.zeroPoint[0]))
        return self.network.tensors[index]

    def _source(self, index: int) -> tuple[int, tuple[int, int] | None]:
        """The tensor behind an operator's input and the explicit padding (top, left) between, if any."""
        index = self.alias.get(int(index), int(index))
        return self.padded.get(index, (index, None))

    def _clamp(self, activation: int, out: Tensor, name: str) -> tuple[int, int]:
        kinds = self.schema.ActivationFunctionType
        if activation == kinds.NONE:
            return -128, 127
        low = max(-128, out.zero_point)
        if activation == kinds.RELU:
            return low, 127
        if activation == kinds.RELU6:
            return low, min(127, out.zero_point + math.floor(6.0 / np.float32(out.scale) + 0.5))
        self.problems.append(f"{name}: fused activation {activation} is not supported; use none, RELU or RELU6")
        return -128, 127

    def _pad(self, op, name: str) -> None:
        pads = self._data(op.inputs[1], np.int32)
        if pads[[0, 3]].any():
            self.problems.append(f"{name}: PAD of batch or channels is not supported; pad height and width only")
        source = self.alias.get(int(op.inputs[0]), int(op.inputs[0]))
        self._tensor(source)
        self.padded[int(op.outputs[0])] = source, (int(pads[1][0]), int(pads[2][0]))

    def _reshape(self, op, name: str) -> None:
        source = self._tensor(op.inputs[0])
        if source.height != 1 or source.width != 1:
            self.problems.append(
                f"{name}: RESHAPE of a {source.height}x{source.width} map is not supported; pool it to 1x1"
            )
        self.alias[int(op.outputs[0])] = self.alias.get(int(op.inputs[0]), int(op.inputs[0]))

    def _window(self, op, name: str, kernel: tuple[int, int]) -> dict:
        """Input, stride and padding of an operator that slides a window."""
        source, explicit = self._source(op.inputs[0])
        options = op.builtinOptions
        stride = (options.strideH, options.strideW)
        a, b = self._tensor(source), self._tensor(op.outputs[0])
        same = options.padding == self.schema.Padding.SAME
        if explicit and same:
            self.problems.append(
                f"{name}: PAD before an operator with SAME padding is not supported; use VALID padding"
            )
        sizes = zip((a.height, a.width), (b.height, b.width), kernel, stride, strict=True)
        pad = tuple(_same_pad(*s) for s in sizes) if same else explicit or (0, 0)
        return {"inputs": (source,), "output": int(op.outputs[0]), "stride": stride, "pad": pad}

    def _conv_2d(self, op, name: str) -> None:
        options = op.builtinOptions
        name = self._name(op.inputs[1])
        if self.graph.tensors[op.inputs[1]].type != self.schema.TensorType.INT8:
            self.problems.append(f"{name}: weights must be int8; quantise the whole model")
            return
        weight = self._data(op.inputs[1], np.int8).transpose(0, 3, 1, 2)
        layer = Layer(
            CONV, name, low=-128, high=127, kernel=weight.shape[2:], **self._window(op, name, weight.shape[2:])
        )
        a, b = self._tensor(layer.inputs[0]), self._tensor(layer.output)
        if (options.dilationHFactor, options.dilationWFactor) != (1, 1) or weight.shape[1] != a.channels:
            self.problems.append(f"{name}: a dilated or grouped CONV_2D is not supported; use dilation 1 and one group")
            return
        low, high = self._clamp(options.fusedActivationFunction, b, name)
        scales = np.asarray(self.graph.tensors[op.inputs[1]].quantization.scale, np.float32).astype(float)
        real = np.broadcast_to(a.scale * scales / b.scale, len(weight))
        bias = self._data(op.inputs[2], np.int32)
        layer = replace(
            layer, low=low, high=high, weight=weight, scales=tuple(quantise_multiplier(r) for r in real), bias=bias
        )
        self.network.layers.append(_fold(_crop(layer, a, b), a))

    def _max_pool_2d(self, op, name: str) -> None:
        options = op.builtinOptions
        kernel = (options.filterHeight, options.filterWidth)
        window = self._window(op, name, kernel)
        low, high = self._clamp(options.fusedActivationFunction, self._tensor(op.outputs[0]), name)
        a, b = self._tensor(window["inputs"][0]), self._tensor(window["output"])
        sizes = zip(a.shape[1:], b.shape[1:], kernel, window["stride"], strict=True)
        reaches_out = any((out - 1) * stride + k > size for size, out, k, stride in sizes)
        if options.padding == self.schema.Padding.SAME and reaches_out:
            self.problems.append(f"{name}: MAX_POOL_2D with SAME padding is not supported; pad explicitly before it")
        self.network.layers.append(Layer(MAX_POOL, name, low=low, high=high, kernel=kernel, **window))

    def _add(self, op, name: str) -> None:
        inputs = tuple(self.alias.get(int(i), int(i)) for i in op.inputs)
        a, b, out = self._tensor(inputs[0]), self._tensor(inputs[1]), self._tensor(op.outputs[0])
        if a.shape != out.shape or b.shape != out.shape:
            self.problems.append(f"{name}: ADD of shapes {a.shape} and {b.shape} is not supported; give both one shape")
        largest = 2 * max(a.scale, b.scale)
        real = (a.scale / largest, b.scale / largest, largest / ((1 << ADD_HEADROOM_BITS) * out.scale))
        low, high = self._clamp(op.builtinOptions.fusedActivationFunction, out, name)
        scales = tuple(quantise_multiplier(r) for r in real)
        self.network.layers.append(Layer(ADD, name, inputs, int(op.outputs[0]), low, high, scales=scales))

    def _mean(self, op, name: str) -> None:
        source = self.alias.get(int(op.inputs[0]), int(op.inputs[0]))
        a, out = self._tensor(source), self._tensor(op.outputs[0])
        axes = sorted(int(x) % 4 for x in self._data(op.inputs[1], np.int32).ravel())
        if axes != [1, 2]:
            self.problems.append(f"{name}: MEAN over axes {axes} is not supported; average over height and width")
        scale = mean_scale(a, out)
        self.network.layers.append(Layer(MEAN, name, (source,), int(op.outputs[0]), -128, 127, scales=(scale,)))


def mean_scale(source: Tensor, out: Tensor) -> tuple[int, int]:
    """TFLM's multiplier for MEAN with the division by the number of values folded in."""
    multiplier, shift = quantise_multiplier(source.scale / out.scale)
    count = source.height * source.width
    room = max(0, min(count.bit_length() - 1, 32, 31 + shift))
    return (multiplier << room) // count, shift - room


def _crop(layer: Layer, source: Tensor, out: Tensor) -> Layer:
    """Cut off the rows and columns of the kernel that only ever meet padding."""
    spans = [
        window_span(*s)
        for s in zip((source.height, source.width), out.shape[1:], layer.kernel, layer.stride, layer.pad, strict=True)
    ]
    (y0, y1), (x0, x1) = spans
    return replace(
        layer,
        weight=np.ascontiguousarray(layer.weight[:, :, y0:y1, x0:x1]),
        kernel=(y1 - y0, x1 - x0),
        pad=(layer.pad[0] - y0, layer.pad[1] - x0),
    )


def _fold(layer: Layer, source: Tensor) -> Layer:
    """bias - zero_point * sum of the row's weights: exact because the border holds the zero point."""
    sums = layer.weight.astype(np.int64).sum(axis=(1, 2, 3))
    return replace(layer, bias=layer.bias.astype(np.int64) - source.zero_point * sums)


def from_tflite(model: bytes) -> Network:
    """Read an int8 TFLite model. Raises UnsupportedError listing every operator the device does not know."""
    return _TfliteReader(model).read()
