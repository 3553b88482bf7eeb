"""Reading int8 TFLite models, built here operator by operator, and running them in tflite-micro."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import write
from torch import nn

from entropi.device import Bundle, HeadConfig, HostDevice
from entropi.device.bundle import Preprocessing
from entropi.export import ConversionError, UnsupportedError
from entropi.export.graph import Graph, Node
from entropi.export.integer import from_tflite
from entropi.export.tflite import convert, run_layers, run_reference

OP = schema.BuiltinOperator
OPTIONS = schema.BuiltinOptions
FUSED = schema.ActivationFunctionType
SAME, VALID = schema.Padding.SAME, schema.Padding.VALID
INT8, INT32, FLOAT32 = schema.TensorType.INT8, schema.TensorType.INT32, schema.TensorType.FLOAT32


class Model:
    """A TFLite model in the making. Activations are given and kept as [1, H, W, C]."""

    def __init__(self, shape: tuple[int, ...], zero_point: int = -3, kind: int = INT8):
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.buffers, self.codes = [schema.BufferT()], []
        self.input = self.tensor("input", shape, kind, (0.05,), zero_point)

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

    def op(self, code, inputs, output, options=None, kind=OPTIONS.NONE) -> int:
        entry = schema.OperatorCodeT()
        entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), 3 if code == 3 else 2
        self.codes.append(entry)
        node = schema.OperatorT()
        node.opcodeIndex, node.inputs, node.outputs = len(self.codes) - 1, list(inputs), [output]
        node.builtinOptions, node.builtinOptionsType = options, kind
        self.graph.operators.append(node)
        return output

    def pad(self, name, source, pads) -> int:
        """`pads` is [[before, after]] for batch, height, width and channels."""
        shape = [n + sum(p) for n, p in zip(self.shape(source), pads, strict=True)]
        amounts = self.tensor(name + "/pads", (4, 2), INT32, None, data=np.array(pads, np.int32))
        zero_point = self.graph.tensors[source].quantization.zeroPoint[0]
        out = self.tensor(name, shape, zero_point=zero_point)
        return self.op(OP.PAD, (source, amounts), out, schema.PadOptionsT(), OPTIONS.PadOptions)

    def conv(self, name, source, rng, channels, kernel, stride, padding, fused=FUSED.NONE, dilation=1, kind=INT8):
        _, height, width, depth = self.shape(source)
        sizes = [
            -(-n // s) if padding == SAME else (n - k) // s + 1
            for n, k, s in zip((height, width), kernel, stride, strict=True)
        ]
        shape = (channels, *kernel, depth)
        fan_in = np.prod(shape[1:])
        scales = rng.uniform(0.4, 1.2, channels).astype(np.float32) / (60 * np.sqrt(fan_in))
        if kind == FLOAT32:
            weights, bias = rng.normal(0, 1, shape).astype(np.float32), np.zeros(channels, np.float32)
        else:
            weights = rng.integers(-127, 128, shape).astype(np.int8)
            bias = rng.integers(-9000, 9000, channels).astype(np.int32)
        w = self.tensor(name + "/weights", shape, kind, scales, data=weights)
        b = self.tensor(
            name + "/bias", (channels,), INT32 if kind == INT8 else FLOAT32, (scales * np.float32(0.05)), data=bias
        )
        out = self.tensor(name, (1, *sizes, channels), kind, zero_point=int(rng.integers(-128, 100)))
        o = schema.Conv2DOptionsT()
        o.padding, (o.strideH, o.strideW), o.fusedActivationFunction = padding, stride, fused
        o.dilationHFactor = o.dilationWFactor = dilation
        return self.op(OP.CONV_2D, (source, w, b), out, o, OPTIONS.Conv2DOptions)

    def max_pool(self, name, source, shape, padding=VALID, stride=2) -> int:
        o = schema.Pool2DOptionsT()
        o.padding, o.strideH, o.strideW, o.filterHeight, o.filterWidth = padding, stride, stride, 3, 3
        return self.op(OP.MAX_POOL_2D, (source,), self.tensor(name, shape), o, OPTIONS.Pool2DOptions)

    def mean(self, name, source, axes, shape) -> int:
        wanted = self.tensor(name + "/axes", (len(axes),), INT32, None, data=np.array(axes, np.int32))
        o = schema.ReducerOptionsT()
        o.keepDims = True
        return self.op(OP.MEAN, (source, wanted), self.tensor(name, shape), o, OPTIONS.ReducerOptions)

    def add(self, name, a, b, fused=FUSED.NONE) -> int:
        o = schema.AddOptionsT()
        o.fusedActivationFunction = fused
        return self.op(OP.ADD, (a, b), self.tensor(name, self.shape(a)), o, OPTIONS.AddOptions)

    def pack(self, output: int) -> bytes:
        model = schema.ModelT()
        model.version, model.subgraphs, model.operatorCodes, model.buffers = 3, [self.graph], self.codes, self.buffers
        self.graph.inputs, self.graph.outputs = [self.input], [output]
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def float_model() -> bytes:
    model = Model((1, 4, 4, 2), kind=FLOAT32)
    rng = np.random.default_rng(0)
    return model.pack(model.conv("float_conv", model.input, rng, 3, (3, 3), (1, 1), SAME, kind=FLOAT32))


def open_model(model: bytes) -> HostDevice:
    network = from_tflite(model)
    first = network.tensors[network.input]
    preprocessing = Preprocessing((0.0,) * first.channels, (1.0,) * first.channels, first.scale, first.zero_point)
    return HostDevice(Bundle(Path(), write(network), {}, preprocessing), "1MiB", head=HeadConfig(2, 1))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_convolution_on_a_tiny_map_is_tflites(data):
    """Cropped kernels and folded zero points, SAME and explicit padding, against LiteRT's reference kernels."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, kernel = (draw(st.tuples(st.integers(1, 4), st.integers(1, n))) for n in (4, 5))
    size = (draw(st.integers(1, 3)), size[1])
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    model = Model((1, *size, draw(st.integers(1, 5))), zero_point=draw(st.integers(-128, 127)))
    source, padding = model.input, draw(st.sampled_from([SAME, VALID]))
    if padding == VALID:
        pads = [[0, 0], [0, 0], [0, 0], [0, 0]]
        for axis in (0, 1):
            before = draw(st.integers(0, kernel[axis]))
            pads[axis + 1] = [before, draw(st.integers(max(0, kernel[axis] - size[axis] - before), kernel[axis]))]
        source = model.pad("pad", source, pads)
    fused = draw(st.sampled_from([FUSED.NONE, FUSED.RELU, FUSED.RELU6]))
    made = model.pack(model.conv("conv", source, rng, 4, kernel, stride, padding, fused))
    values = rng.integers(-128, 128, (2, model.shape(model.input)[3], *size)).astype(np.int8)
    network = from_tflite(made)
    device = open_model(made)
    expected = run_layers(made, values)[network.output]
    for image, layer in zip(values, expected, strict=True):
        np.testing.assert_array_equal(device.encode_layers(image)[-1], layer)


def test_a_chain_of_small_maps_gives_tflite_micros_bytes():
    """2x2 and 1x1 maps under 3x3 kernels: most of each kernel meets padding alone and is not stored."""
    rng = np.random.default_rng(4)
    model = Model((1, 2, 2, 6))
    x = model.conv("same", model.input, rng, 8, (3, 3), (1, 1), SAME, FUSED.RELU)
    x = model.conv("strided", x, rng, 8, (3, 3), (2, 2), SAME)
    skip = x
    x = model.conv("point", x, rng, 8, (3, 3), (1, 1), SAME)
    made = model.pack(model.add("add", x, skip, FUSED.RELU))
    network = from_tflite(made)
    assert [layer.kernel for layer in network.layers[:3]] == [(3, 3), (2, 2), (1, 1)]
    values = rng.integers(-128, 128, (50, 6, 2, 2)).astype(np.int8)
    device = open_model(made)
    np.testing.assert_array_equal(np.stack([device.encode(v) for v in values]), run_reference(made, values))


def test_every_operator_the_device_lacks_is_named_at_once():
    rng = np.random.default_rng(0)
    model = Model((1, 4, 4, 4))
    x = model.op(OP.LOGISTIC, (model.input,), model.tensor("sigmoid", (1, 4, 4, 4)))
    x = model.conv("dilated", x, rng, 4, (1, 1), (1, 1), VALID, dilation=2)
    x = model.max_pool("same_pool", x, (1, 2, 2, 4), SAME)
    x = model.pad("channel_pad", x, [[0, 0], [0, 0], [0, 0], [0, 2]])
    x = model.conv("after_pad", model.tensor("more", (1, 2, 2, 6)), rng, 6, (1, 1), (1, 1), VALID, FUSED.TANH)
    x = model.mean("mean_of_channels", x, (3,), (1, 2, 2, 1))
    x = model.op(OP.RESHAPE, (x,), model.tensor("flat", (1, 4)))
    with pytest.raises(UnsupportedError) as refused:
        from_tflite(model.pack(x))
    lines = str(refused.value).splitlines()
    assert lines[0] == "cannot put this model on the device:"
    assert [line.strip() for line in lines[1:]] == [
        "sigmoid: operator LOGISTIC is not supported; replace it by a supported one",
        "dilated/weights: a dilated or grouped CONV_2D is not supported; use dilation 1 and one group",
        "same_pool: MAX_POOL_2D with SAME padding is not supported; pad explicitly before it",
        "channel_pad: PAD of batch or channels is not supported; pad height and width only",
        f"after_pad/weights: fused activation {FUSED.TANH} is not supported; use none, RELU or RELU6",
        "mean_of_channels: MEAN over axes [3] is not supported; average over height and width",
        "flat: RESHAPE of a 2x2 map is not supported; pool it to 1x1",
    ]


def test_padding_that_no_window_reads_is_refused():
    model = Model((1, 3, 3, 2))
    padded = model.pad("frame", model.input, [[0, 0], [1, 1], [1, 1], [0, 0]])
    with pytest.raises(UnsupportedError, match="frame: PAD before anything but .* is not supported"):
        from_tflite(model.pack(model.add("add", padded, padded)))


def test_a_float_model_is_refused():
    with pytest.raises(UnsupportedError, match=r"input: an activation must be int8 .*; quantise the whole model"):
        from_tflite(float_model())


@pytest.mark.parametrize("junk", [b"", b"not a model", bytes(range(256)) * 8, float_model()[:400]])
def test_a_file_that_is_no_model_is_refused(junk):
    with pytest.raises(UnsupportedError, match=f"these {len(junk)} bytes are no TFLite model"):
        from_tflite(junk)


def test_tensorflow_failing_is_one_line():
    """A graph that from_module cannot give: three channels of weights on two of input."""
    weight, bias = np.ones((4, 3, 1, 1), np.float32), np.zeros(4, np.float32)
    node = Node("conv", "conv", ("image",), (4, 6, 6), weight=weight, bias=bias)
    with pytest.raises(ConversionError) as failed:
        convert(Graph("image", (2, 6, 6), "conv", nn.Identity(), [node]), np.zeros((1, 2, 6, 6)))
    message = str(failed.value)
    assert message.startswith("tflite_worker ended with exit status 1: ValueError: Depth of input (2) ")
    assert "\n" not in message and 'File "' not in message


@pytest.mark.parametrize("what", ["a float model", "garbage"])
def test_tflite_micro_failing_is_one_line(what):
    model = float_model() if what == "a float model" else bytes(range(256)) * 8
    with pytest.raises(ConversionError) as failed:
        run_reference(model, np.zeros((1, 2, 4, 4), np.int8))
    message = str(failed.value)
    assert message.startswith("tflm_worker ended with ")
    assert "\n" not in message and "Traceback" not in message and 'File "' not in message
    assert len(message) < 500
