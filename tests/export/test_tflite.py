"""Reading int8 TFLite models, built here operator by operator, and running them in tflite-micro."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from networks import write
from tflite_model import FUSED, OP, SAME, VALID, Model, float_model
from torch import nn

from entropi.device import Bundle, HeadConfig, HostDevice
from entropi.device.bundle import Preprocessing
from entropi.export import ConversionError, UnsupportedError
from entropi.export.graph import Graph, Node
from entropi.export.integer import KIND_NAMES
from entropi.export.reader import from_tflite
from entropi.export.tflite import convert
from entropi.export.tflm import run_reference


def open_model(model: bytes) -> HostDevice:
    network = from_tflite(model)
    first = network.tensors[network.input]
    preprocessing = Preprocessing((0.0,) * first.channels, (1.0,) * first.channels, first.scale, first.zero_point)
    return HostDevice(Bundle(Path(), write(network), {}, preprocessing), "1MiB", head=HeadConfig(2, 1))


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
