"""Every operator, in models made operator by operator: byte for byte tflite-micro's over shapes, strides, paddings,
dilations, groups, zero points and scales, each shape on random inputs and on the extremes.

Models come in batches, as a process of tflite-micro takes longer to start than to run one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import extremes
from networks import opened
from tflite_model import FUSED, INT32, OP, OPTIONS, SAME, VALID, Model, schema

from entropi.export.integer import TABLE
from entropi.export.reader import from_tflite
from entropi.export.tflm import Job, run_jobs

RANDOM = 250  # inputs of a model
BATCH = 8


def give_tflite_micros_bytes(models: Sequence[bytes], optimize: str = "size") -> None:
    """Every layer of every model, on random inputs and the extremes."""
    networks = [from_tflite(model) for model in models]
    jobs = []
    for model, network in zip(models, networks, strict=True):
        shape = network.tensors[network.input].shape
        rng = np.random.default_rng(len(model))
        values = np.concatenate([extremes(shape), rng.integers(-128, 128, (RANDOM, *shape)).astype(np.int8)])
        jobs.append(Job(model, values, list(network.last_writers())))
    for network, job, result in zip(networks, jobs, run_jobs(jobs), strict=True):
        device, whole = opened(network, optimize), network.last_writers()
        for image, values in enumerate(job.inputs):
            found = device.encode_layers(values)
            for tensor, number in whole.items():
                expected = result.activations[tensor][image]
                np.testing.assert_array_equal(found[number], expected, err_msg=network.layers[number].name)


def batches(models: st.SearchStrategy[bytes], examples: int = 3):
    """The test gets BATCH models at a time, `examples` times: 3 are 6,000 random inputs. The first are the simplest
    there are."""

    def decorate(test):
        return settings(max_examples=examples, deadline=None)(
            given(models=st.lists(models, min_size=BATCH, max_size=BATCH))(test)
        )

    return decorate


SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))
SMALL = st.tuples(st.integers(1, 3), st.integers(1, 3))
FUSINGS = st.sampled_from([FUSED.NONE, FUSED.RELU, FUSED.RELU6])
PADDINGS = st.sampled_from([SAME, VALID])
ZERO_POINTS = st.integers(-128, 127)


@st.composite
def generators(draw) -> np.random.Generator:
    return np.random.default_rng(draw(st.integers(0, 2**32)))


def begin(draw, size: tuple[int, int], channels: int) -> Model:
    return Model((1, *size, channels), draw(ZERO_POINTS), scale=draw(st.floats(0.02, 0.1)))


def window(draw, size: tuple[int, int], reach: int = 3, dilation: int = 1) -> tuple:
    """Kernel, stride and padding of a window that meets the map."""
    padding = draw(PADDINGS)
    most = [reach if padding == SAME else min(reach, (n - 1) // dilation + 1) for n in size]
    return tuple(draw(st.integers(1, n)) for n in most), draw(SMALL), padding


@st.composite
def padded_convolutions(draw) -> bytes:
    """Kernels larger than a tiny map, padded by themselves or by PAD or PADV2: most taps meet padding alone."""
    rng = draw(generators())
    size, kernel = (draw(st.integers(1, 3)), draw(st.integers(1, 4))), draw(st.tuples(*[st.integers(1, 5)] * 2))
    model = begin(draw, size, draw(st.integers(1, 5)))
    source, padding = model.input, draw(PADDINGS)
    if padding == VALID:
        pads = [[0, 0], [0, 0], [0, 0], [0, 0]]
        for axis in (0, 1):
            before = draw(st.integers(0, kernel[axis]))
            pads[axis + 1] = [before, draw(st.integers(max(0, kernel[axis] - size[axis] - before), kernel[axis]))]
        source = model.pad("pad", source, pads, explicit=draw(st.booleans()))
    return model.pack(model.conv("conv", source, rng, 4, kernel, draw(SMALL), padding, draw(FUSINGS)))


@batches(padded_convolutions())
def test_convolutions_on_tiny_maps(models):
    give_tflite_micros_bytes(models)


@st.composite
def convolutions(draw) -> bytes:
    """A grouped or dilated one, then a depthwise one."""
    rng, size, groups, many = draw(generators()), draw(SIZES), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    dilation = draw(st.integers(1, 2))
    model = begin(draw, size, 2 * groups)
    kernel, stride, padding = window(draw, size, dilation=dilation)
    x = model.conv("grouped", model.input, rng, many * groups, kernel, stride, padding, draw(FUSINGS), dilation, groups)
    return model.pack(model.depthwise("depthwise", x, rng, many, kernel, (1, 1), SAME, dilation))


@batches(convolutions())
def test_grouped_depthwise_and_dilated_convolutions(models):
    give_tflite_micros_bytes(models)


def test_a_dilated_kernel_of_which_only_the_middle_meets_data():
    """From inside the map: its first tap is beside the map at every place."""
    rng = np.random.default_rng(0)
    model = Model((1, 2, 1, 2), zero_point=0)
    x = model.conv("conv", model.input, rng, 1, (3, 1), (2, 1), SAME, dilation=2)
    give_tflite_micros_bytes([model.pack(model.depthwise("depthwise", x, rng, 1, (3, 1), (1, 1), SAME, 2))])


@st.composite
def pools(draw) -> bytes:
    """By itself a pool's padding takes no part; after PAD it does."""
    size, code = draw(SIZES), draw(st.sampled_from([OP.MAX_POOL_2D, OP.AVERAGE_POOL_2D]))
    model = begin(draw, size, 3)
    x = model.pool("pool", model.input, *window(draw, size), code, draw(FUSINGS))
    x = model.pad("pad", x, [[0, 0], [1, 2], [2, 1], [0, 0]])
    return model.pack(model.pool("over_pad", x, (3, 3), (2, 1), VALID, code))


@batches(pools())
def test_pools(models):
    give_tflite_micros_bytes(models)


@st.composite
def means(draw) -> bytes:
    """Over height and width, and with the two axes kept or dropped."""
    size, channels = draw(SIZES), draw(st.integers(1, 5))
    model = begin(draw, size, channels)
    shape = draw(st.sampled_from([(1, 1, 1, channels), (1, channels)]))
    return model.pack(model.mean("mean", model.input, (1, 2), shape, **model.some(draw(generators()))))


@batches(means())
def test_means(models):
    give_tflite_micros_bytes(models)


@st.composite
def linear_layers(draw) -> bytes:
    """Over a map, which a RESHAPE flattens, then over a vector."""
    size, channels, rng = draw(SIZES), draw(st.integers(1, 5)), draw(generators())
    model = begin(draw, size, channels)
    flat = model.tensor("flat", (1, channels * size[0] * size[1]), **model.quantization(model.input))
    flat = model.op(OP.RESHAPE, (model.input,), flat)
    x = model.fully_connected("first", flat, rng, 6, draw(FUSINGS), draw(st.booleans()))
    return model.pack(model.fully_connected("second", x, rng, 4))


@batches(linear_layers())
def test_fully_connected_layers(models):
    give_tflite_micros_bytes(models)


@st.composite
def of_two(draw) -> bytes:
    """ADD, SUB and MUL of maps of different scales; the second is spread along some axes."""
    size, rng = draw(SIZES), draw(generators())
    code = draw(st.sampled_from([OP.ADD, OP.SUB, OP.MUL]))
    model = begin(draw, size, draw(st.integers(1, 4)))
    a = model.conv("first", model.input, rng, 3, (1, 1), (1, 1), SAME)
    b = model.conv("second", model.input, rng, 3, (1, 1), (1, 1), SAME)
    b = model.pool("less", b, [draw(st.sampled_from([1, n])) for n in size], (1, 1), VALID)
    swapped = code != OP.SUB and draw(st.booleans())
    return model.pack(model.binary("both", code, *((b, a) if swapped else (a, b)), model.shape(a), rng, draw(FUSINGS)))


@batches(of_two())
def test_sums_differences_and_products(models):
    give_tflite_micros_bytes(models)


@st.composite
def concatenations(draw) -> bytes:
    """Of two to five parts, one of them perhaps twice, read by a convolution."""
    size, rng = draw(SIZES), draw(generators())
    model = begin(draw, size, draw(st.integers(1, 3)))
    kernels = draw(st.lists(SMALL, min_size=1, max_size=4))
    parts = [model.pool(f"part{n}", model.input, kernel, (1, 1), SAME) for n, kernel in enumerate(kernels)]
    x = model.concat("all", [*parts, draw(st.sampled_from([model.input, *parts]))])
    return model.pack(model.conv("after", x, rng, 4, *window(draw, size)))


@batches(concatenations())
def test_concatenations(models):
    give_tflite_micros_bytes(models)


@st.composite
def softmaxes(draw) -> bytes:
    channels = draw(st.integers(1, 40))
    model = Model((1, *draw(SMALL), channels), draw(ZERO_POINTS), scale=draw(st.floats(0.001, 0.6)))
    o = schema.SoftmaxOptionsT()
    o.beta = draw(st.sampled_from([1.0, 0.5]))
    out = model.tensor("softmax", model.shape(model.input), scale=(1 / 256,), zero_point=-128)
    return model.pack(model.op(OP.SOFTMAX, (model.input,), out, o, OPTIONS.SoftmaxOptions))


@batches(softmaxes())
def test_softmax(models):
    give_tflite_micros_bytes(models)


def test_what_looks_at_one_value_becomes_a_table():
    """All 256 values, of every operator that does; LOGISTIC and TANH have the scale that TFLite prescribes."""
    rng = np.random.default_rng(1)
    model = Model((1, 16, 16, 1), zero_point=-20)
    three = model.tensor("three", (1,), scale=(0.1,), zero_point=4, data=np.array([34], np.int8))
    prescribed = {"LOGISTIC": {"scale": 1 / 256, "zero_point": -128}, "TANH": {"scale": 1 / 128, "zero_point": 0}}
    found = []
    for code in ("RELU", "RELU6", "LEAKY_RELU", "ELU", "HARD_SWISH", "LOGISTIC", "TANH", "QUANTIZE"):
        wanted = prescribed.get(code, {"scale": 0.07, "zero_point": -101})
        found.append(model.unary(code, getattr(OP, code), model.input, **wanted))
    for code in (OP.ADD, OP.SUB, OP.MUL):
        for order in ((model.input, three), (three, model.input)):
            found.append(model.binary(f"{code}_{order[0]}", code, *order, (1, 16, 16, 1), rng))
    x = found[0]
    for other in found[1:]:
        x = model.add("sum", x, other)
    made = model.pack(x)
    network = from_tflite(made)
    tables = {layer.output: layer.table for layer in network.layers if layer.kind == TABLE}
    assert sorted(tables) == sorted(found)
    values = np.arange(-128, 128).astype(np.int8).reshape(1, 1, 16, 16)
    for tensor, expected in run_jobs([Job(made, values, found)])[0].activations.items():
        np.testing.assert_array_equal(tables[tensor], expected.ravel())
        assert len(np.unique(expected)) > 20
    give_tflite_micros_bytes([made])


def test_reshapes_that_move_nothing_disappear():
    rng = np.random.default_rng(3)
    model = Model((1, 1, 1, 6))
    x = model.conv("conv", model.input, rng, 8, (1, 1), (1, 1), SAME)
    order = model.tensor("order", (4,), INT32, None, data=np.array([0, 3, 1, 2], np.int32))
    x = model.op(OP.TRANSPOSE, (x, order), model.tensor("moved", (1, 8, 1, 1), **model.quantization(x)))
    o = schema.SqueezeOptionsT()
    o.squeezeDims = [2, 3]
    squeezed = model.tensor("squeezed", (1, 8), **model.quantization(x))
    x = model.op(OP.SQUEEZE, (x,), squeezed, o, OPTIONS.SqueezeOptions)
    made = model.pack(model.fully_connected("end", x, rng, 5))
    assert [layer.name for layer in from_tflite(made).layers] == ["conv/weights", "end/weights"]
    give_tflite_micros_bytes([made] * 4)


def test_a_chain_of_small_maps():
    """2x2 and 1x1 maps under 3x3 kernels: most of each kernel meets padding alone and is not stored."""
    rng = np.random.default_rng(4)
    model = Model((1, 2, 2, 6))
    x = model.conv("same", model.input, rng, 8, (3, 3), (1, 1), SAME, FUSED.RELU)
    x = model.conv("strided", x, rng, 8, (3, 3), (2, 2), SAME)
    skip = x
    x = model.conv("point", x, rng, 8, (3, 3), (1, 1), SAME)
    made = model.pack(model.add("add", x, skip, FUSED.RELU))
    assert [layer.kernel for layer in from_tflite(made).layers[:3]] == [(3, 3), (2, 2), (1, 1)]
    give_tflite_micros_bytes([made])
