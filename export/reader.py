"""From an int8 TFLite model to the integer network.

PAD operators disappear into the layer that reads them, kernel taps that only ever meet padding are cut off, the zero
point of a convolution's input is folded into its bias, a fully connected layer becomes a convolution over the whole
map, and an operator of one input becomes a table of what tflite-micro makes of every value. All of it is exact: the
outputs stay byte for byte those of tflite-micro.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from entropi.export.flat import parse
from entropi.export.graph import MAX_CONCAT, MAX_SOFTMAX, UnsupportedError
from entropi.export.integer import (
    ADD,
    ADD_HEADROOM_BITS,
    AVERAGE_POOL,
    CONV,
    COPY,
    MAX_POOL,
    MEAN,
    MUL,
    SOFTMAX,
    SUB,
    TABLE,
    Layer,
    Network,
    Tensor,
    cropped,
    folded,
    mean_scale,
    quantise_multiplier,
)
from entropi.export.softmax import exponentials
from entropi.export.tables import tabulate

DAMAGED = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # where a part is missing, or another instead
UNARY = ("RELU", "RELU6", "LEAKY_RELU", "ELU", "HARD_SWISH", "LOGISTIC", "TANH", "QUANTIZE")
RESHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")


def from_tflite(model: bytes) -> Network:
    """Read an int8 TFLite model. Raises UnsupportedError listing every operator the device does not know."""
    try:
        return _Reader(model).read()
    except UnsupportedError:
        raise
    except DAMAGED as error:
        raise UnsupportedError(
            f"these {len(model)} bytes are a damaged TFLite model ({type(error).__name__}: {error}); "
            "convert the model anew"
        ) from error


class _Reader:
    """Walks the operators of one subgraph and collects layers and problems."""

    def __init__(self, model: bytes):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = parse(model)
        self.graph = self.model.subgraphs[0]
        ends = [0 if numbers is None else len(numbers) for numbers in (self.graph.inputs, self.graph.outputs)]
        if 0 in ends or len(self.model.subgraphs) > 1:
            raise UnsupportedError(
                f"the model has {len(self.model.subgraphs)} subgraphs, the first of {ends[0]} inputs and {ends[1]} "
                "outputs; give a model that turns one input into one output, without variables or control flow"
            )
        self.codes = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self.types = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        self.problems: list[str] = []
        self.strange: set[int] = set()  # activations of a type or shape that no layer takes
        self.alias: dict[int, int] = {}
        self.padded: dict[int, tuple[int, tuple[int, int]]] = {}  # from PAD's output to its input, top and left
        self.flattened: dict[int, int] = {}  # from the output of a reshaped map to that map
        self.tabled: dict[int, object] = {}  # from a table's output to the operator it stands for
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
            self._operator(self.codes.get(max(code.builtinCode, code.deprecatedBuiltinCode), "CUSTOM"), op)
        self._tensor(self.network.output)
        if self.problems:
            raise UnsupportedError("cannot put this model on the device:\n  " + "\n  ".join(self.problems))
        self.network.output = self._source(self.network.output)
        tables = dict(zip(self.tabled, tabulate(self.model, list(self.tabled.values())), strict=True))
        self.network.layers = [
            replace(layer, table=tables[layer.output]) if layer.kind == TABLE else layer
            for layer in self.network.layers
        ]
        return self.network

    def _operator(self, operator: str, op) -> None:
        name = operator if op.outputs is None else self._name(op.outputs[0])
        handler = getattr(self, f"_{operator.lower()}", None)
        try:
            if operator in UNARY:
                self._table(op, name)
            elif operator in RESHAPING:
                self._reshape(op)
            elif handler:
                handler(op, name)
            else:
                self._problem(name, f"operator {operator}", "replace it by a supported one")
        except DAMAGED as error:
            what = f"operator {operator} with these tensors and options ({type(error).__name__}: {error})"
            self._problem(name, what, "convert the model anew")

    def _problem(self, name: str, what: str, remedy: str) -> None:
        self.problems.append(f"{name}: {what} is not supported; {remedy}")

    def _name(self, index: int) -> str:
        """A tensor's name; the converter joins the names of fused operators with semicolons, the last one first."""
        return self.graph.tensors[index].name.decode().split(";")[0]

    def _constant(self, index: int) -> bool:
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        return data is not None and len(data) > 0

    def _data(self, index: int, dtype: type) -> np.ndarray:
        tensor = self.graph.tensors[index]
        return np.frombuffer(bytes(self.model.buffers[tensor.buffer].data), dtype).reshape(tensor.shape)

    def _source(self, index: int) -> int:
        return self.alias.get(int(index), int(index))

    def _tensor(self, index: int) -> Tensor:
        index = self._source(index)
        if index in self.padded:
            self._problem(self._name(index), "PAD before anything but a convolution or a pool", "remove it")
        if index in self.flattened:
            t = self._tensor(self.flattened[index])
            what = f"RESHAPE of a {t.height}x{t.width} map before anything but FULLY_CONNECTED"
            self._problem(self._name(index), what, "pool it to 1x1")
            return t
        if index not in self.network.tensors:
            t = self.graph.tensors[index]
            shape = [] if t.shape is None else [int(n) for n in t.shape]
            scaled = t.quantization is not None and t.quantization.scale is not None
            if t.type != self.schema.TensorType.INT8 or len(shape) not in (2, 4) or shape[0] != 1 or not scaled:
                found = f"{self.types.get(t.type)} {shape}" + ("" if scaled else " without a scale")
                self.problems.append(
                    f"{self._name(index)}: an activation is {found} and must be int8 [1, H, W, C] or [1, C]; quantise "
                    "the whole model, for a batch of one"
                )
                self.strange.add(index)
                self.network.tensors[index] = Tensor(1, 1, 1, 1.0, 0)
            else:
                height, width, channels = shape[1:] if len(shape) == 4 else (1, 1, shape[1])
                q = t.quantization
                scale, zero_point = float(q.scale[0]), int(q.zeroPoint[0])
                self.network.tensors[index] = Tensor(channels, height, width, scale, zero_point, self._name(index))
        return self.network.tensors[index]

    def _clamp(self, activation: int, out: Tensor, name: str) -> tuple[int, int]:
        kinds = self.schema.ActivationFunctionType
        if activation == kinds.NONE:
            return -128, 127
        low = max(-128, out.zero_point)
        if activation == kinds.RELU:
            return low, 127
        if activation == kinds.RELU6:
            return low, min(127, out.zero_point + math.floor(6.0 / np.float32(out.scale) + 0.5))
        self._problem(name, f"fused activation {activation}", "use none, RELU or RELU6")
        return -128, 127

    # What disappears.

    def _pad(self, op, name: str) -> None:
        pads = self._data(op.inputs[1], np.int32)
        source = self._source(op.inputs[0])
        t = self._tensor(source)
        if pads.shape != (4, 2) or pads[[0, 3]].any():
            self._problem(name, "PAD of batch or channels", "pad height and width only")
        elif len(op.inputs) > 2 and int(self._data(op.inputs[2], np.int8).ravel()[0]) != t.zero_point:
            self._problem(name, "PADV2 with another value than zero", "pad with zeros")
        else:
            self.padded[int(op.outputs[0])] = source, (int(pads[1][0]), int(pads[2][0]))

    _padv2 = _pad

    def _reshape(self, op) -> None:
        source, out = self._source(op.inputs[0]), int(op.outputs[0])
        t = self._tensor(source)
        if t.height == t.width == 1 or [int(n) for n in self.graph.tensors[out].shape[1:]] == [
            *t.shape[1:],
            t.channels,
        ]:
            self.alias[out] = source
        else:
            self.flattened[out] = source

    def _transpose(self, op, name: str) -> None:
        shape = self.graph.tensors[op.inputs[0]].shape
        order = [int(axis) for axis in self._data(op.inputs[1], np.int32).ravel() if shape[axis] > 1]
        if order == sorted(order):
            self._reshape(op)
        else:
            self._problem(name, f"TRANSPOSE of axes {order}", "keep the order height, width, channels")

    # Convolutions and pools.

    def _window(self, op, kernel: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> dict:
        """Input, stride and padding of an operator that slides a window; a pool's is clipped if it pads by itself."""
        options, output = op.builtinOptions, int(op.outputs[0])
        source, explicit = self.padded.get(self._source(op.inputs[0]), (self._source(op.inputs[0]), (0, 0)))
        a, b = self._tensor(source), self._tensor(output)
        stride = (options.strideH, options.strideW)
        pad = explicit
        if options.padding == self.schema.Padding.SAME:
            if any(explicit):
                self._problem(self._name(output), "PAD before an operator with SAME padding", "use VALID padding")
            axes = zip(a.shape[1:], b.shape[1:], kernel, stride, dilation, strict=True)
            pad = tuple(max((out - 1) * s + (k - 1) * d + 1 - size, 0) // 2 for size, out, k, s, d in axes)
        return {"inputs": (source,), "output": output, "stride": stride, "pad": pad, "kernel": kernel}

    def _convolution(self, op, weight: np.ndarray, window: dict, **fields) -> None:
        """`weight` is int8 [out, in / groups, kh, kw]."""
        name, kernel = self._name(op.inputs[1]), self.graph.tensors[op.inputs[1]]
        a, b = self._tensor(window["inputs"][0]), self._tensor(window["output"])
        low, high = self._clamp(op.builtinOptions.fusedActivationFunction, b, name)
        scales = np.asarray(kernel.quantization.scale, np.float32).astype(float)
        real = np.broadcast_to(a.scale * scales / b.scale, len(weight))
        has_bias = len(op.inputs) > 2 and op.inputs[2] >= 0
        if has_bias and self.graph.tensors[op.inputs[2]].type != self.schema.TensorType.INT32:
            kind = self.types[self.graph.tensors[op.inputs[2]].type]
            self._problem(self._name(op.inputs[2]), f"a bias of {kind}", "quantise activations to int8")
            return
        layer = Layer(
            CONV, name, low=low, high=high, weight=weight, scales=tuple(quantise_multiplier(r) for r in real),
            bias=self._data(op.inputs[2], np.int32) if has_bias else np.zeros(len(weight), np.int32),
            **window, **fields,
        )  # fmt: skip
        self.network.layers.append(folded(cropped(layer, a, b), a))

    def _weights(self, op) -> np.ndarray | None:
        name, tensor = self._name(op.inputs[1]), self.graph.tensors[op.inputs[1]]
        if tensor.type != self.schema.TensorType.INT8 or not self._constant(op.inputs[1]):
            self.problems.append(f"{name}: weights must be constant and int8; quantise the whole model")
            return None
        if any(tensor.quantization.zeroPoint):
            self._problem(name, "a weight zero point other than 0", "quantise weights symmetrically")
            return None
        return self._data(op.inputs[1], np.int8)

    def _conv_2d(self, op, name: str) -> None:
        self._sliding(op, (0, 3, 1, 2))

    def _depthwise_conv_2d(self, op, name: str) -> None:
        self._sliding(op, (3, 0, 1, 2))

    def _sliding(self, op, order: tuple[int, ...]) -> None:
        """A convolution whose weights, their axes in `order`, are [out, in / groups, kh, kw]."""
        weight = self._weights(op)
        if weight is None:
            return
        weight = weight.transpose(order)
        dilation = (op.builtinOptions.dilationHFactor, op.builtinOptions.dilationWFactor)
        window = self._window(op, weight.shape[2:], dilation)
        channels = self._tensor(window["inputs"][0]).channels
        self._convolution(op, weight, window, dilation=dilation, groups=channels // weight.shape[1])

    def _fully_connected(self, op, name: str) -> None:
        weight = self._weights(op)
        if weight is None:
            return
        source = self.flattened.get(self._source(op.inputs[0]), self._source(op.inputs[0]))
        t = self._tensor(source)
        if weight.shape[1] != t.channels * t.height * t.width:
            if source not in self.strange:
                what = f"FULLY_CONNECTED over the last axis of a {t.height}x{t.width} map"
                self._problem(name, what, "use a 1x1 CONV_2D")
            return
        weight = weight.reshape(-1, t.height, t.width, t.channels).transpose(0, 3, 1, 2)
        self._convolution(op, weight, {"inputs": (source,), "output": int(op.outputs[0]), "kernel": weight.shape[2:]})

    def _pool(self, kind: int, op, name: str) -> None:
        options = op.builtinOptions
        window = self._window(op, (options.filterHeight, options.filterWidth))
        low, high = self._clamp(options.fusedActivationFunction, self._tensor(op.outputs[0]), name)
        clipped = options.padding == self.schema.Padding.SAME
        self.network.layers.append(Layer(kind, name, low=low, high=high, clipped=clipped, **window))

    def _max_pool_2d(self, op, name: str) -> None:
        self._pool(MAX_POOL, op, name)

    def _average_pool_2d(self, op, name: str) -> None:
        self._pool(AVERAGE_POOL, op, name)

    def _mean(self, op, name: str) -> None:
        source = self._source(op.inputs[0])
        a, out = self._tensor(source), self._tensor(op.outputs[0])
        axes = sorted(int(x) % 4 for x in self._data(op.inputs[1], np.int32).ravel())
        if axes != [1, 2]:
            self._problem(name, f"MEAN over axes {axes}", "average over height and width")
        scale = mean_scale(a, out)
        self.network.layers.append(Layer(MEAN, name, (source,), int(op.outputs[0]), -128, 127, scales=(scale,)))

    # Layers that look at one position of each channel.

    def _concatenation(self, op, name: str) -> None:
        out, sources = self._tensor(op.outputs[0]), [self._source(i) for i in op.inputs]
        parts = [self._tensor(i) for i in sources]
        axis = op.builtinOptions.axis % len(self.graph.tensors[op.outputs[0]].shape)
        if axis != len(self.graph.tensors[op.outputs[0]].shape) - 1 or any(map(self._constant, op.inputs)):
            self._problem(name, f"CONCATENATION along axis {axis} or with a constant", "concatenate channels")
        elif len(parts) > MAX_CONCAT:
            what = f"CONCATENATION of {len(parts)} tensors, more than tflite-micro's {MAX_CONCAT},"
            self._problem(name, what, "concatenate in several steps")
        elif any((t.scale, t.zero_point) != (out.scale, out.zero_point) for t in parts):
            self._problem(name, "CONCATENATION of tensors with other scales than the result's", "requantise before it")
        else:
            first = 0
            for source, part in zip(sources, parts, strict=True):
                layer = Layer(COPY, name, (source,), int(op.outputs[0]), -128, 127, first=first)
                self.network.layers.append(layer)
                first += part.channels

    def _table(self, op, name: str) -> None:
        source = next(i for i in op.inputs if not self._constant(i))
        self._tensor(source), self._tensor(op.outputs[0])
        output = int(op.outputs[0])
        self.tabled[output] = op
        self.network.layers.append(Layer(TABLE, name, (self._source(source),), output, -128, 127))

    def _softmax(self, op, name: str) -> None:
        a, out = self._tensor(op.inputs[0]), self._tensor(op.outputs[0])
        if a.channels > MAX_SOFTMAX:
            self._problem(name, f"SOFTMAX over {a.channels} values", f"use at most {MAX_SOFTMAX}")
        elif (out.scale, out.zero_point) != (1 / 256, -128):
            self._problem(name, f"SOFTMAX with scale {out.scale} and zero point {out.zero_point}", "use 1/256 and -128")
        table = exponentials(a.scale, op.builtinOptions.beta)
        source = self._source(op.inputs[0])
        self.network.layers.append(Layer(SOFTMAX, name, (source,), int(op.outputs[0]), -128, 127, table=table))

    def _operands(self, op, name: str, operator: str) -> tuple[int, int] | None:
        """The first has the output's shape, the second the same or 1 along some axes."""
        constants = [i for i in op.inputs if self._constant(i)]
        if constants:
            if all(math.prod(self.graph.tensors[i].shape) == 1 for i in constants):
                self._table(op, name)
            else:
                self._problem(name, f"{operator} with a constant that is not a scalar", "fold it into a convolution")
            return None
        first, second = (self._source(i) for i in op.inputs)
        shapes = [self._tensor(i).shape for i in (first, second, op.outputs[0])]
        if shapes[0] != shapes[2] and operator != "SUB":
            first, second, shapes[:2] = second, first, shapes[1::-1]
        spreads = all(n in (1, m) for n, m in zip(shapes[1], shapes[2], strict=True))
        if shapes[0] != shapes[2] or not spreads:
            what = f"{operator} of shapes {self._tensor(op.inputs[0]).shape} and {self._tensor(op.inputs[1]).shape}"
            self._problem(name, what, "give one of them the shape of the result")
            return None
        return first, second

    def _sum(self, kind: int, operator: str, op, name: str) -> None:
        inputs = self._operands(op, name, operator)
        if inputs is None:
            return
        a, b, out = self._tensor(inputs[0]), self._tensor(inputs[1]), self._tensor(op.outputs[0])
        largest = 2 * max(a.scale, b.scale)
        real = (a.scale / largest, b.scale / largest, largest / ((1 << ADD_HEADROOM_BITS) * out.scale))
        low, high = self._clamp(op.builtinOptions.fusedActivationFunction, out, name)
        scales = tuple(quantise_multiplier(r) for r in real)
        self.network.layers.append(Layer(kind, name, inputs, int(op.outputs[0]), low, high, scales=scales))

    def _add(self, op, name: str) -> None:
        self._sum(ADD, "ADD", op, name)

    def _sub(self, op, name: str) -> None:
        self._sum(SUB, "SUB", op, name)

    def _mul(self, op, name: str) -> None:
        inputs = self._operands(op, name, "MUL")
        if inputs is None:
            return
        a, b, out = self._tensor(inputs[0]), self._tensor(inputs[1]), self._tensor(op.outputs[0])
        low, high = self._clamp(op.builtinOptions.fusedActivationFunction, out, name)
        scale = quantise_multiplier(a.scale * b.scale / out.scale)
        self.network.layers.append(Layer(MUL, name, inputs, int(op.outputs[0]), low, high, scales=(scale,)))
