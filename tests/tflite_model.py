"""TFLite models of single operators, made by hand."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from entropi.export.flat import pack

OP = schema.BuiltinOperator
OPTIONS = schema.BuiltinOptions
FUSED = schema.ActivationFunctionType
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
INT8, INT32, FLOAT32 = schema.TensorType.INT8, schema.TensorType.INT32, schema.TensorType.FLOAT32


def windows(size, kernel, stride, padding, dilation=1) -> list[int]:
    """How many windows fit along each axis."""
    axes = zip(size, kernel, stride, strict=True)
    return [-(-n // s) if padding == SAME else (n - dilation * (k - 1) - 1) // s + 1 for n, k, s in axes]


class Model:
    """A TFLite model in the making. Activations are given and kept as [1, H, W, C]."""

    def __init__(self, shape: tuple[int, ...], zero_point: int = -3, kind: int = INT8, scale: float = 0.05):
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.buffers, self.codes = [schema.BufferT()], []
        self.input = self.tensor("input", shape, kind, (scale,), zero_point)

    def tensor(self, name, shape, kind=INT8, scale=(0.05,), zero_point=0, data=None, axis=0) -> int:
        t = schema.TensorT()
        t.name, t.shape, t.type, t.buffer = name.encode(), list(map(int, shape)), kind, 0
        if data is not None:
            t.buffer = len(self.buffers)
            self.buffers.append(schema.BufferT())
            self.buffers[-1].data = np.frombuffer(data.tobytes(), np.uint8)
        if kind != FLOAT32 and scale is not None:
            t.quantization = schema.QuantizationParametersT()
            t.quantization.scale, t.quantization.zeroPoint = list(scale), [zero_point] * len(scale)
            t.quantization.quantizedDimension = axis
        self.graph.tensors.append(t)
        return len(self.graph.tensors) - 1

    def shape(self, index: int) -> list[int]:
        return self.graph.tensors[index].shape

    def quantization(self, index: int) -> dict:
        """Scale and zero point of an activation, as `tensor` takes them."""
        q = self.graph.tensors[index].quantization
        return {} if q is None else {"scale": tuple(q.scale), "zero_point": q.zeroPoint[0]}

    def some(self, rng) -> dict:
        """Any scale and zero point for an activation."""
        return {"scale": (float(rng.uniform(0.025, 0.1)),), "zero_point": int(rng.integers(-128, 100))}

    def bias(self, name, source, scales, values) -> int:
        real = np.asarray(scales, np.float32) * np.float32(self.quantization(source)["scale"][0])
        return self.tensor(name, values.shape, INT32, real, data=values.astype(np.int32))

    def op(self, code, inputs, output, options=None, kind=OPTIONS.NONE) -> int:
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 3 if code == 3 else 2
        self.codes.append(entry)
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = len(self.codes) - 1, list(inputs), [output]
        node.builtinOptions, node.builtinOptionsType = options, kind
        self.graph.operators.append(node)
        return output

    def pad(self, name, source, pads, explicit=False) -> int:
        """`pads` is [[before, after]] for batch, height, width and channels; `explicit` names the value, as PADV2
        does."""
        shape = [n + sum(p) for n, p in zip(self.shape(source), pads, strict=True)]
        amounts = self.tensor(name + "/pads", (4, 2), INT32, None, data=np.array(pads, np.int32))
        like = self.quantization(source)
        out = self.tensor(name, shape, **like)
        if explicit:
            zero = self.tensor(name + "/zero", (1,), **like, data=np.array([like["zero_point"]], np.int8))
            return self.op(OP.PADV2, (source, amounts, zero), out, schema.PadV2OptionsT(), OPTIONS.PadV2Options)
        return self.op(OP.PAD, (source, amounts), out, schema.PadOptionsT(), OPTIONS.PadOptions)

    def conv(
        self, name, source, rng, channels, kernel, stride, padding, fused=FUSED.NONE, dilation=1, groups=1, kind=INT8
    ):
        _, height, width, depth = self.shape(source)
        sizes = windows((height, width), kernel, stride, padding, dilation)
        shape = (channels, *kernel, depth // groups)
        fan_in = np.prod(shape[1:])
        scales = rng.uniform(0.4, 1.2, channels).astype(np.float32) / (60 * np.sqrt(fan_in))
        if kind == FLOAT32:
            w = self.tensor(name + "/weights", shape, kind, data=rng.normal(0, 1, shape).astype(np.float32))
            b = self.tensor(name + "/bias", (channels,), kind, data=np.zeros(channels, np.float32))
        else:
            weights = rng.integers(-127, 128, shape).astype(np.int8)
            w = self.tensor(name + "/weights", shape, kind, scales, data=weights)
            b = self.bias(name + "/bias", source, scales, rng.integers(-9000, 9000, channels))
        out = self.tensor(name, (1, *sizes, channels), kind, **self.some(rng))
        o = schema.Conv2DOptionsT()
        o.padding, (o.strideH, o.strideW), o.fusedActivationFunction = padding, stride, fused
        o.dilationHFactor = o.dilationWFactor = dilation
        return self.op(OP.CONV_2D, (source, w, b), out, o, OPTIONS.Conv2DOptions)

    def depthwise(self, name, source, rng, multiplier, kernel, stride, padding, dilation=1) -> int:
        _, height, width, depth = self.shape(source)
        sizes = windows((height, width), kernel, stride, padding, dilation)
        channels = depth * multiplier
        scales = rng.uniform(0.4, 1.2, channels).astype(np.float32) / (60 * np.sqrt(np.prod(kernel)))
        data = rng.integers(-127, 128, (1, *kernel, channels)).astype(np.int8)
        w = self.tensor(name + "/weights", data.shape, INT8, scales, data=data, axis=3)
        b = self.bias(name + "/bias", source, scales, rng.integers(-900, 900, channels))
        out = self.tensor(name, (1, *sizes, channels), **self.some(rng))
        o = schema.DepthwiseConv2DOptionsT()
        o.padding, (o.strideH, o.strideW), o.depthMultiplier = padding, stride, multiplier
        o.dilationHFactor = o.dilationWFactor = dilation
        return self.op(OP.DEPTHWISE_CONV_2D, (source, w, b), out, o, OPTIONS.DepthwiseConv2DOptions)

    def fully_connected(self, name, source, rng, features, fused=FUSED.NONE, bias=True) -> int:
        width = int(np.prod(self.shape(source)))
        scale = (np.float32(1 / (60 * np.sqrt(width))),)
        w = self.tensor(
            name + "/weights", (features, width), INT8, scale,
            data=rng.integers(-127, 128, (features, width)).astype(np.int8),
        )  # fmt: skip
        b = self.bias(name + "/bias", source, scale, rng.integers(-900, 900, features)) if bias else -1
        o = schema.FullyConnectedOptionsT()
        o.fusedActivationFunction = fused
        out = self.tensor(name, (1, features), **self.some(rng))
        return self.op(OP.FULLY_CONNECTED, (source, w, b), out, o, OPTIONS.FullyConnectedOptions)

    def pool(self, name, source, kernel, stride, padding, code=OP.MAX_POOL_2D, fused=FUSED.NONE) -> int:
        _, height, width, depth = self.shape(source)
        o = schema.Pool2DOptionsT()
        o.padding, (o.strideH, o.strideW), (o.filterHeight, o.filterWidth) = padding, stride, kernel
        o.fusedActivationFunction = fused
        shape = (1, *windows((height, width), kernel, stride, padding), depth)
        out = self.tensor(name, shape, **self.quantization(source))
        return self.op(code, (source,), out, o, OPTIONS.Pool2DOptions)

    def unary(self, name, code, source, scale=0.05, zero_point=0) -> int:
        out = self.tensor(name, self.shape(source), scale=(scale,), zero_point=zero_point)
        kind = {OP.HARD_SWISH: "HardSwish", OP.QUANTIZE: "Quantize", OP.LEAKY_RELU: "LeakyRelu"}.get(code)
        if kind is None:
            return self.op(code, (source,), out)
        return self.op(code, (source,), out, getattr(schema, f"{kind}OptionsT")(), getattr(OPTIONS, f"{kind}Options"))

    def binary(self, name, code, a, b, shape, rng, fused=FUSED.NONE) -> int:
        kind = {OP.ADD: "Add", OP.SUB: "Sub", OP.MUL: "Mul"}[code]
        o = getattr(schema, f"{kind}OptionsT")()
        o.fusedActivationFunction = fused
        out = self.tensor(name, shape, **self.some(rng))
        return self.op(code, (a, b), out, o, getattr(OPTIONS, f"{kind}Options"))

    def concat(self, name, sources) -> int:
        shape = [*self.shape(sources[0])[:3], sum(self.shape(source)[3] for source in sources)]
        o = schema.ConcatenationOptionsT()
        o.axis = 3
        out = self.tensor(name, shape, **self.quantization(sources[0]))
        return self.op(OP.CONCATENATION, sources, out, o, OPTIONS.ConcatenationOptions)

    def mean(self, name, source, axes, shape, **quantization) -> int:
        wanted = self.tensor(name + "/axes", (len(axes),), INT32, None, data=np.array(axes, np.int32))
        o = schema.ReducerOptionsT()
        o.keepDims = len(shape) == 4
        return self.op(OP.MEAN, (source, wanted), self.tensor(name, shape, **quantization), o, OPTIONS.ReducerOptions)

    def add(self, name, a, b, fused=FUSED.NONE) -> int:
        o = schema.AddOptionsT()
        o.fusedActivationFunction = fused
        return self.op(OP.ADD, (a, b), self.tensor(name, self.shape(a)), o, OPTIONS.AddOptions)

    def pack(self, output: int) -> bytes:
        model = schema.ModelT()
        model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [self.graph], self.codes, self.buffers
        self.graph.inputs, self.graph.outputs = [self.input], [output]
        return pack(model)


def float_model() -> bytes:
    model = Model((1, 4, 4, 2), kind=FLOAT32)
    rng = np.random.default_rng(0)
    return model.pack(model.conv("float_conv", model.input, rng, 3, (3, 3), (1, 1), SAME, kind=FLOAT32))
