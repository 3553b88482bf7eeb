"""The ends of a TFLite model: what turns float32 or uint8 into int8, and back."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_model import FLOAT32, OP, SAME, Model, float_model, schema

from entropi.device.bundle import Preprocessing
from entropi.export import UnsupportedError
from entropi.export.flat import int8_ends, pack, parse
from entropi.export.reader import from_tflite
from entropi.export.tflm import Job, run_jobs, run_reference

UINT8 = schema.TensorType.UINT8


def with_ends(kind: int) -> bytes:
    """A convolution between int8 values whose model takes and returns `kind`."""
    rng = np.random.default_rng(0)
    model = Model((1, 5, 4, 3))
    inner = model.input
    outer = model.tensor("outer", (1, 5, 4, 3), kind, zero_point=125)
    model.op(OP.QUANTIZE, (outer,), inner)
    x = model.conv("conv", inner, rng, 4, (3, 3), (2, 2), SAME)
    last = model.tensor("last", model.shape(x), kind, model.quantization(x)["scale"], 128)
    model.op(OP.DEQUANTIZE if kind == FLOAT32 else OP.QUANTIZE, (x,), last)
    model.input = outer
    return model.pack(last)


@pytest.mark.parametrize("kind", [FLOAT32, UINT8])
def test_the_ends_are_taken_off_and_the_middle_is_the_same(kind):
    whole = with_ends(kind)
    middle = int8_ends(whole)
    network = from_tflite(middle)
    assert [layer.name for layer in network.layers] == ["conv/weights"]
    first, last = network.tensors[network.input], network.tensors[network.output]
    values = np.random.default_rng(1).integers(-128, 128, (6, 3, 5, 4)).astype(np.int8)
    interpreter = Interpreter(model_content=whole, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    for image, features in zip(values, run_reference(middle, values), strict=True):
        hwc = image.transpose(1, 2, 0)[None].astype(np.int32)
        if kind == FLOAT32:
            outer = ((hwc - first.zero_point) * first.scale).astype(np.float32)
        else:
            outer = (hwc - first.zero_point + 125).clip(0, 255).astype(np.uint8)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], outer)
        interpreter.invoke()
        found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1)
        if kind == FLOAT32:
            expected = (features.astype(np.float32) - last.zero_point) * np.float32(last.scale)
            np.testing.assert_allclose(found, expected, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found.astype(int), features.astype(int) - last.zero_point + 128)


def test_pixels_become_what_quantize_makes_of_them():
    """All 256 shades, where a float32 input was. tflite-micro rounds float32 half away from zero, we float64 half up:
    one step apart at most, and only where float32 cannot tell a half from what is beside it."""
    rng = np.random.default_rng(2)
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    jobs, ours, exact = [], [], []
    for case in range(40):
        mean, std, zero_point = rng.uniform(0.1, 0.6), rng.uniform(0.1, 0.5), int(rng.integers(-128, 100))
        # Every fourth has shades that lie on halves.
        scale = 2 / (255 * std) if case % 4 == 0 else rng.uniform(0.005, 0.05)
        mean = 10 / 255 if case % 4 == 0 else mean
        model = Model((1, 16, 16, 1), kind=FLOAT32)
        inner = model.tensor("inner", (1, 16, 16, 1), scale=(scale,), zero_point=zero_point)
        made = model.pack(model.op(OP.QUANTIZE, (model.input,), inner))
        jobs.append(Job(made, ((levels / 255 - mean) / std).astype(np.float32)))
        scale = float(np.float32(scale))
        ours.append(Preprocessing((mean,), (std,), scale, zero_point)(levels).ravel().astype(int))
        exact.append(((np.arange(256) / 255 - mean) / std / scale).ravel())
    theirs = np.stack([result.outputs[0] for result in run_jobs(jobs)]).astype(int)
    apart, exact = np.abs(np.stack(ours) - theirs), np.stack(exact)
    assert apart.max() == 1, "without a half nothing is tested"
    assert (np.abs(exact - np.floor(exact) - 0.5)[apart > 0] < 1e-4).all()


def test_a_model_with_int8_ends_stays_as_it_is():
    model = Model((1, 3, 3, 2))
    made = model.pack(model.conv("conv", model.input, np.random.default_rng(0), 3, (1, 1), (1, 1), SAME))
    assert int8_ends(made) is made


def test_a_float_model_has_no_int8_ends():
    model = float_model()
    assert int8_ends(model) is model


def test_a_file_that_is_no_model_is_refused():
    with pytest.raises(UnsupportedError, match="these 9 bytes are no TFLite model"):
        int8_ends(b"not a one")


def test_a_model_without_an_input_is_refused():
    """As one that keeps a head in variables is."""
    model = Model((1, 3, 3, 2))
    made = model.pack(model.conv("conv", model.input, np.random.default_rng(0), 3, (1, 1), (1, 1), SAME))
    content = parse(made)
    content.subgraphs[0].inputs, content.subgraphs[0].operators[0].inputs = [], None
    with pytest.raises(UnsupportedError, match="1 subgraphs, the first of 0 inputs and 1 outputs; give a model that"):
        from_tflite(int8_ends(pack(content)))
