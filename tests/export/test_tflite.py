"""Reading int8 TFLite models, built here operator by operator, and running them in tflite-micro."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from networks import write
from tflite_model import FUSED, INT32, OP, OPTIONS, SAME, VALID, Model, float_model, schema
from torch import nn

from entropi.device import Bundle, HeadConfig, HostDevice
from entropi.device.bundle import Preprocessing
from entropi.export import ConversionError, UnsupportedError
from entropi.export.graph import Graph, Node
from entropi.export.integer import KIND_NAMES, TABLE
from entropi.export.reader import from_tflite
from entropi.export.tflite import convert
from entropi.export.tflm import run_layers, run_reference


def open_model(model: bytes) -> HostDevice:
    network = from_tflite(model)
    first = network.tensors[network.input]
    preprocessing = Preprocessing((0.0,) * first.channels, (1.0,) * first.channels, first.scale, first.zero_point)
    return HostDevice(Bundle(Path(), write(network), {}, preprocessing), "1MiB", head=HeadConfig(2, 1))


@settings(max_examples=40, deadline=None)
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
    expected = run_layers(made, values, [network.output])[network.output]
    for image, layer in zip(values, expected, strict=True):
        np.testing.assert_array_equal(device.encode_layers(image)[-1], layer)


def gives_tflite_micros_bytes(model: Model, output: int, rng: np.random.Generator, images: int = 20) -> None:
    """Every layer, on random images and on all values at their smallest and largest."""
    made = model.pack(output)
    network = from_tflite(made)
    _, height, width, channels = model.shape(model.input)
    values = rng.integers(-128, 128, (images, channels, height, width)).astype(np.int8)
    values[0], values[1] = -128, 127
    device = open_model(made)
    whole = network.last_writers()
    expected = run_layers(made, values, list(whole))
    for image, value in enumerate(values):
        found = device.encode_layers(value)
        for tensor, number in whole.items():
            np.testing.assert_array_equal(found[number], expected[tensor][image], err_msg=network.layers[number].name)


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
SMALL = st.tuples(st.integers(1, 3), st.integers(1, 3))
FUSINGS = st.sampled_from([FUSED.NONE, FUSED.RELU, FUSED.RELU6])
SEEDS = st.integers(0, 2**32)


@settings(max_examples=25, deadline=None)
@given(
    size=SIZES, kernel=SMALL, stride=SMALL, padding=st.sampled_from([SAME, VALID]), dilation=st.integers(1, 2),
    groups=st.integers(1, 3), many=st.integers(1, 2), zero_point=st.integers(-128, 127), seed=SEEDS,
)  # fmt: skip
@example(
    size=(2, 1), kernel=(3, 1), stride=(2, 1), padding=SAME, dilation=2, groups=1, many=1, zero_point=0, seed=0
)  # Only the kernel's middle meets data, from inside the map.
def test_grouped_depthwise_and_dilated_convolutions(
    size, kernel, stride, padding, dilation, groups, many, zero_point, seed
):
    assume(padding == SAME or all(n > dilation * (k - 1) for n, k in zip(size, kernel, strict=True)))
    rng = np.random.default_rng(seed)
    model = Model((1, *size, 2 * groups), zero_point=zero_point)
    x = model.conv(
        "grouped", model.input, rng, many * groups, kernel, stride, padding, dilation=dilation, groups=groups
    )
    x = model.depthwise("depthwise", x, rng, many, kernel, (1, 1), SAME, dilation)
    gives_tflite_micros_bytes(model, x, rng)


@settings(max_examples=20, deadline=None)
@given(
    size=SIZES, kernel=SMALL, stride=SMALL, padding=st.sampled_from([SAME, VALID]), fused=FUSINGS,
    code=st.sampled_from([OP.MAX_POOL_2D, OP.AVERAGE_POOL_2D]), zero_point=st.integers(-128, 127), seed=SEEDS,
)  # fmt: skip
def test_pools(size, kernel, stride, padding, fused, code, zero_point, seed):
    """By themselves their padding takes no part; after PAD it does."""
    assume(padding == SAME or all(n >= k for n, k in zip(size, kernel, strict=True)))
    rng = np.random.default_rng(seed)
    model = Model((1, *size, 3), zero_point=zero_point)
    x = model.pool("pool", model.input, kernel, stride, padding, code, fused)
    x = model.pad("pad", x, [[0, 0], [1, 2], [2, 1], [0, 0]])
    gives_tflite_micros_bytes(model, model.pool("over_pad", x, (3, 3), (2, 1), VALID, code), rng)


@settings(max_examples=15, deadline=None)
@given(size=SIZES, channels=st.integers(1, 5), fused=FUSINGS, bias=st.booleans(), seed=SEEDS)
def test_fully_connected_over_a_map(size, channels, fused, bias, seed):
    rng = np.random.default_rng(seed)
    model = Model((1, *size, channels), zero_point=int(rng.integers(-128, 128)))
    flat = model.op(OP.RESHAPE, (model.input,), model.tensor("flat", (1, channels * size[0] * size[1]), zero_point=7))
    model.graph.tensors[flat].quantization = model.graph.tensors[model.input].quantization
    x = model.fully_connected("first", flat, rng, 6, fused, bias)
    gives_tflite_micros_bytes(model, model.fully_connected("second", x, rng, 4), rng)


@settings(max_examples=15, deadline=None)
@given(
    size=SIZES, channels=st.integers(1, 4), code=st.sampled_from([OP.ADD, OP.SUB, OP.MUL]), fused=FUSINGS,
    axes=st.tuples(st.booleans(), st.booleans()), seed=SEEDS,
)  # fmt: skip
def test_elementwise_layers_spread_their_second_input(size, channels, code, fused, axes, seed):
    rng = np.random.default_rng(seed)
    model = Model((1, *size, channels), zero_point=int(rng.integers(-128, 128)))
    a = model.conv("first", model.input, rng, 3, (1, 1), (1, 1), SAME)
    kernel = [n if axis else 1 for n, axis in zip(size, axes, strict=True)]
    b = model.pool("second", a, kernel, (1, 1), VALID)
    swapped = code != OP.SUB and seed % 2
    x = model.binary("both", code, *((b, a) if swapped else (a, b)), model.shape(a), rng, fused)
    gives_tflite_micros_bytes(model, x, rng)


@pytest.mark.parametrize("code", ["RELU", "RELU6", "LEAKY_RELU", "HARD_SWISH", "LOGISTIC", "TANH", "QUANTIZE"])
def test_what_looks_at_one_value_becomes_a_table(code):
    """All 256 values; LOGISTIC and TANH have the scale that TFLite prescribes."""
    rng = np.random.default_rng(1)
    model = Model((1, 16, 16, 1), zero_point=-20)
    scale, zero_point = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}.get(code, (0.07, -101))
    x = model.unary("unary", getattr(OP, code), model.input, scale, zero_point)
    made = model.pack(x)
    network = from_tflite(made)
    assert [layer.kind for layer in network.layers] == [TABLE]
    values = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 16, 16)
    np.testing.assert_array_equal(open_model(made).encode(values[0]), run_reference(made, values)[0])
    gives_tflite_micros_bytes(model, x, rng, 3)


@pytest.mark.parametrize("code", [OP.ADD, OP.SUB, OP.MUL])
def test_a_scalar_constant_becomes_a_table(code):
    rng = np.random.default_rng(2)
    model = Model((1, 4, 5, 3))
    three = model.tensor("three", (1,), scale=(0.1,), zero_point=4, data=np.array([34], np.int8))
    gives_tflite_micros_bytes(model, model.binary("with_three", code, model.input, three, (1, 4, 5, 3), rng), rng)


@settings(max_examples=15, deadline=None)
@given(
    channels=st.integers(1, 40), scale=st.floats(0.001, 0.6), beta=st.sampled_from([1.0, 0.5]),
    zero_point=st.integers(-128, 127), size=SMALL, seed=SEEDS,
)  # fmt: skip
def test_softmax(channels, scale, beta, zero_point, size, seed):
    model = Model((1, *size, channels), zero_point=zero_point, scale=scale)
    o = schema.SoftmaxOptionsT()
    o.beta = beta
    out = model.tensor("softmax", (1, *size, channels), scale=(1 / 256,), zero_point=-128)
    x = model.op(OP.SOFTMAX, (model.input,), out, o, OPTIONS.SoftmaxOptions)
    gives_tflite_micros_bytes(model, x, np.random.default_rng(seed))


def test_concatenated_channels():
    rng = np.random.default_rng(3)
    model = Model((1, 5, 4, 2), zero_point=-3)
    parts = [model.pool(f"part{n}", model.input, (k, k), (1, 1), SAME) for n, k in enumerate((1, 2, 3))]
    x = model.concat("all", parts)
    gives_tflite_micros_bytes(model, model.conv("after", x, rng, 4, (3, 3), (2, 2), SAME), rng)


def test_reshapes_that_move_nothing_disappear():
    rng = np.random.default_rng(3)
    model = Model((1, 1, 1, 6))
    x = model.conv("conv", model.input, rng, 8, (1, 1), (1, 1), SAME)
    zero_point = model.graph.tensors[x].quantization.zeroPoint[0]
    order = model.tensor("order", (4,), INT32, None, data=np.array([0, 3, 1, 2], np.int32))
    x = model.op(OP.TRANSPOSE, (x, order), model.tensor("moved", (1, 8, 1, 1), zero_point=zero_point))
    o = schema.SqueezeOptionsT()
    o.squeezeDims = [2, 3]
    squeezed = model.tensor("squeezed", (1, 8), zero_point=zero_point)
    x = model.op(OP.SQUEEZE, (x,), squeezed, o, OPTIONS.SqueezeOptions)
    made = model.pack(model.fully_connected("end", x, rng, 5))
    assert [layer.name for layer in from_tflite(made).layers] == ["conv/weights", "end/weights"]
    gives_tflite_micros_bytes(model, model.graph.operators[-1].outputs[0], rng)


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


def test_mlperf_tinys_resnet8():
    """The benchmark's own file, dense, from Keras: byte for byte through average pool, fully connected and softmax."""
    file = Path(os.environ.get("ENTROPI_DATA", "")).parent / "models" / "mlperf_tiny_resnet8_int8.tflite"
    if "ENTROPI_DATA" not in os.environ or not file.exists():
        pytest.skip("ENTROPI_DATA names no folder with ../models/mlperf_tiny_resnet8_int8.tflite beside it")
    made = file.read_bytes()
    kinds = [KIND_NAMES[layer.kind] for layer in from_tflite(made).layers]
    assert kinds[-3:] == ["average_pool", "conv", "softmax"] and len(kinds) == 15
    values = np.random.default_rng(0).integers(-128, 128, (1000, 3, 32, 32)).astype(np.int8)
    values[0], values[1] = -128, 127
    device = open_model(made)
    np.testing.assert_array_equal(np.stack([device.encode(v) for v in values]), run_reference(made, values))


def test_every_operator_the_device_lacks_is_named_at_once():
    rng = np.random.default_rng(0)
    model = Model((1, 4, 4, 4))
    x = model.op(OP.SIN, (model.input,), model.tensor("sine", (1, 4, 4, 4)))
    x = model.pool("smaller", x, (3, 3), (2, 2), SAME)
    x = model.pad("channel_pad", x, [[0, 0], [0, 0], [0, 0], [0, 2]])
    x = model.conv("after_pad", model.tensor("more", (1, 2, 2, 6)), rng, 6, (1, 1), (1, 1), VALID, FUSED.TANH)
    x = model.mean("mean_of_channels", x, (3,), (1, 2, 2, 1))
    many = model.tensor("many", (4,), data=np.ones(4, np.int8))
    x = model.binary("times_many", OP.MUL, x, many, (1, 2, 2, 4), rng)
    x = model.op(OP.RESHAPE, (x,), model.tensor("flat", (1, 16)))
    with pytest.raises(UnsupportedError) as refused:
        from_tflite(model.pack(x))
    lines = str(refused.value).splitlines()
    assert lines[0] == "cannot put this model on the device:"
    assert [line.strip() for line in lines[1:]] == [
        "sine: operator SIN is not supported; replace it by a supported one",
        "channel_pad: PAD of batch or channels is not supported; pad height and width only",
        f"after_pad/weights: fused activation {FUSED.TANH} is not supported; use none, RELU or RELU6",
        "mean_of_channels: MEAN over axes [3] is not supported; average over height and width",
        "times_many: MUL with a constant that is not a scalar is not supported; fold it into a convolution",
        "flat: RESHAPE of a 2x2 map before anything but FULLY_CONNECTED is not supported; pool it to 1x1",
    ]


def test_padding_that_no_window_reads_is_refused():
    model = Model((1, 3, 3, 2))
    padded = model.pad("frame", model.input, [[0, 0], [1, 1], [1, 1], [0, 0]])
    with pytest.raises(UnsupportedError, match="frame: PAD before anything but a convolution or a pool is"):
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
