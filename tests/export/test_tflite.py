"""Reading int8 TFLite models: what is refused, and the benchmark's own file; test_operators.py has the operators."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from inputs import extremes
from networks import opened
from tflite_model import FUSED, OP, SAME, VALID, Model, float_model, schema
from torch import nn

from entropi.export import ConversionError, UnsupportedError
from entropi.export.flat import int8_ends, pack, parse
from entropi.export.graph import Graph, Node
from entropi.export.integer import KIND_NAMES
from entropi.export.reader import from_tflite
from entropi.export.tflite import convert
from entropi.export.tflm import run_reference


def test_mlperf_tinys_resnet8():
    """The benchmark's own file, dense, from Keras: byte for byte through average pool, fully connected and softmax."""
    file = Path(os.environ.get("ENTROPI_DATA", "")).parent / "models" / "mlperf_tiny_resnet8_int8.tflite"
    if "ENTROPI_DATA" not in os.environ or not file.exists():
        pytest.skip("ENTROPI_DATA names no folder with ../models/mlperf_tiny_resnet8_int8.tflite beside it")
    made = file.read_bytes()
    kinds = [KIND_NAMES[layer.kind] for layer in from_tflite(made).layers]
    assert kinds[-3:] == ["average_pool", "conv", "softmax"] and len(kinds) == 15
    random = np.random.default_rng(0).integers(-128, 128, (1000, 3, 32, 32)).astype(np.int8)
    values = np.concatenate([extremes((3, 32, 32)), random])
    device = opened(from_tflite(made))
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
    with pytest.raises(
        UnsupportedError, match=r"input: an activation is float32 \[1, 4, 4, 2\] without a scale and must"
    ):
        from_tflite(float_model())


def changed(change) -> bytes:
    """A model of one convolution and one linear layer after `change` of its graph and the whole."""
    rng = np.random.default_rng(0)
    model = Model((1, 4, 4, 2))
    x = model.conv("conv", model.input, rng, 3, (4, 4), (1, 1), VALID)
    content = parse(model.pack(model.fully_connected("linear", x, rng, 5)))
    change(content.subgraphs[0], content)
    return pack(content)


def unchanged(graph, content) -> None:
    """Nothing."""


def activations(kind: int):
    def change(graph, _) -> None:
        for tensor in graph.tensors:
            if b"/" not in tensor.name:
                tensor.type = kind

    return change


def wide_bias(graph, content) -> None:
    bias = next(t for t in graph.tensors if t.name == b"conv/bias")
    bias.type, content.buffers[bias.buffer].data = schema.TensorType.INT64, np.zeros(24, np.uint8)


def batch_of_two(graph, _) -> None:
    for tensor in graph.tensors:
        if b"/" not in tensor.name:
            tensor.shape = [2, *tensor.shape[1:]]


def five_axes(graph, _) -> None:
    graph.tensors[0].shape = [1, 1, 4, 4, 2]


def without_scale(graph, _) -> None:
    graph.tensors[0].quantization.scale = None


def uneven_weights(graph, _) -> None:
    next(t for t in graph.tensors if t.name == b"conv/weights").quantization.zeroPoint = [0, 3, 0]


def without_options(graph, _) -> None:
    graph.operators[0].builtinOptions = None


def no_such_tensor(graph, _) -> None:
    graph.operators[1].inputs = [99, 5, 6]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (activations(schema.TensorType.INT16), r"input: an activation is int16 \[1, 4, 4, 2\] and must be int8"),
        (activations(schema.TensorType.FLOAT32), r"linear: an activation is float32 \[1, 5\] and must be int8"),
        (activations(schema.TensorType.FLOAT16), r"conv: an activation is float16 \[1, 1, 1, 3\] and must be int8"),
        (wide_bias, "conv/bias: a bias of int64 is not supported; quantise activations to int8"),
        (
            batch_of_two,
            r"input: an activation is int8 \[2, 4, 4, 2\] and must .*; quantise the whole model, for a batch",
        ),
        (five_axes, r"input: an activation is int8 \[1, 1, 4, 4, 2\] and must"),
        (without_scale, r"input: an activation is int8 \[1, 4, 4, 2\] without a scale and must"),
        (uneven_weights, "conv/weights: a weight zero point other than 0 is not supported; quantise weights symm"),
        (without_options, "conv: operator CONV_2D with these tensors and options .* is not supported; convert the"),
        (no_such_tensor, r"no TFLite model, or a damaged one \(tensor 99 of 7\); give an int8 .tflite file"),
    ],
)
def test_other_ways_to_quantise_are_refused(change, says):
    assert len(from_tflite(changed(unchanged)).layers) == 2
    with pytest.raises(UnsupportedError, match=says):
        from_tflite(changed(change))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=3), st.integers(0, 400))
@example([(352, 0)], 0)  # a list that the reader counts on is empty
def test_a_damaged_file_is_read_or_refused(changes, cut):
    made = bytearray(changed(unchanged))
    for at, value in changes:
        made[at % len(made)] = value
    with suppress(UnsupportedError):
        from_tflite(int8_ends(bytes(made[: len(made) - cut])))


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
