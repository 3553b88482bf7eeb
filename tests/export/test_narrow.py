"""Fewer bits for the weights of sparse layers: still a TFLite model, of which every runtime makes the same bytes."""

import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import TensorT
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from inputs import extremes
from networks import opened
from tflite_model import FUSED, SAME, VALID, Model, float_model

from entropi.export import UnsupportedError, export_model
from entropi.export.encoder import TFLITE
from entropi.export.flat import parse
from entropi.export.integer import CONV
from entropi.export.narrow import INT8_BITS, narrow
from entropi.export.reader import from_tflite
from entropi.export.tflm import LITERT, TFLM, Job, run_jobs

LAYERS = ("conv", "depthwise", "full")  # the last has one scale for all its rows
SPARSE, DENSE = 0.1, 1.0  # shares of non-zero weights


def three_layers(shares: tuple[float, ...], seed: int = 0, bias: bool = True) -> Model:
    """LAYERS, one after the other, of which these shares of weights are kept."""
    rng = np.random.default_rng(seed)
    model = Model((1, 5, 6, 8), scale=0.03)
    x = model.conv("conv", model.input, rng, 6, (3, 3), (1, 1), SAME, FUSED.RELU)
    x = model.depthwise("depthwise", x, rng, 2, (3, 3), (2, 2), VALID)
    model.fully_connected("full", x, rng, 9, bias=bias)
    for name, share in zip(LAYERS, shares, strict=True):
        prune(model, name, share, rng)
    return model


def prune(model: Model, name: str, share: float, rng) -> None:
    buffer = model.buffers[tensor(model.graph, f"{name}/weights").buffer]
    buffer.data = buffer.data * (rng.random(buffer.data.shape) < share)


def tensor(graph, name: str) -> TensorT:
    return next(t for t in graph.tensors if t.name == name.encode())


def packed(model: Model) -> bytes:
    """Its last operator gives the output."""
    return model.pack(model.graph.operators[-1].outputs[0])


def constant(model: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers [rows, values] and the steps between them [rows, 1]."""
    content = parse(model)
    t = tensor(content.subgraphs[0], name)
    values = np.frombuffer(bytes(content.buffers[t.buffer].data), np.int32 if name.endswith("bias") else np.int8)
    rows = np.moveaxis(values.reshape(t.shape), t.quantization.quantizedDimension, 0).astype(int)
    rows = rows.reshape(len(rows), -1)
    step = np.asarray(t.quantization.scale, np.float32).astype(float)
    return rows, np.broadcast_to(step, len(rows))[:, None]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    bits=st.integers(3, 8),
    shares=st.tuples(*[st.sampled_from([SPARSE, DENSE])] * len(LAYERS)),
)
def test_sparse_weights_are_the_nearest_of_so_few_bits_and_others_stay(seed, bits, shares):
    old = packed(three_layers(shares, seed))
    new, most = narrow(old, bits), 2 ** (bits - 1) - 1
    for name, share in zip(LAYERS, shares, strict=True):
        (before, fine), (after, step) = (constant(model, f"{name}/weights") for model in (old, new))
        (bias_before, bias_fine), (bias_after, bias_step) = (constant(model, f"{name}/bias") for model in (old, new))
        if share == DENSE:
            assert (before == after).all() and (bias_before == bias_after).all() and (fine == step).all()
            continue
        largest = abs(before).max(axis=1, keepdims=True) if name != "full" else abs(before).max(keepdims=True)
        expected = np.maximum(largest / most, 1) * fine  # rows whose values have so few bits already stay
        np.testing.assert_allclose(step, expected, rtol=1e-6)
        assert abs(after).max() <= most
        assert (abs(after * step - before * fine) <= step * 0.501).all()
        assert (abs(bias_after * bias_step - bias_before * bias_fine) <= bias_step * 0.501).all()
        np.testing.assert_allclose(bias_step / step, bias_fine / fine, rtol=1e-6)  # the scale of the layer's input
    assert narrow(new, bits) is new


@st.composite
def narrowed(draw) -> bytes:
    shares = draw(st.tuples(*[st.sampled_from([SPARSE, SPARSE, DENSE])] * len(LAYERS)))
    model = three_layers(shares, draw(st.integers(0, 2**32)), draw(st.booleans()))
    return narrow(packed(model), draw(st.integers(3, 7)))


@settings(max_examples=3, deadline=None, phases=[Phase.generate])  # to shrink takes minutes: each try two processes
@given(st.lists(narrowed(), min_size=6, max_size=6))
def test_every_runtime_makes_the_same_bytes(models):
    """But LiteRT's fully connected layer, which rounds in its own way however many bits weights have."""
    networks = [from_tflite(model) for model in models]
    jobs, varied = [], []
    for model, network in zip(models, networks, strict=True):
        shape = network.tensors[network.input].shape
        rng = np.random.default_rng(len(model))
        values = np.concatenate([extremes(shape), rng.integers(-128, 128, (30, *shape)).astype(np.int8)])
        jobs.append(Job(model, values, [network.layers[1].output]))
    for network, job, micro, lite in zip(networks, jobs, run_jobs(jobs, TFLM), run_jobs(jobs, LITERT), strict=True):
        for optimize in ("size", "speed"):
            device = opened(network, optimize)
            np.testing.assert_array_equal([device.encode(values) for values in job.inputs], micro.outputs)
        (expected,), (found,) = micro.activations.values(), lite.activations.values()
        np.testing.assert_array_equal(found, expected)
        varied.append(len(np.unique(expected)))
    assert np.median(varied) > 20, "values that are all alike prove nothing"


def two_convolutions() -> Model:
    """One after the other, of the same shape, both sparse."""
    rng = np.random.default_rng(1)
    model = Model((1, 4, 4, 5), scale=0.03)
    x = model.input
    for name in ("first", "second"):
        x = model.conv(name, x, rng, 5, (3, 3), (1, 1), SAME)
        prune(model, name, SPARSE, rng)
    return model


def test_layers_that_share_a_buffer_are_narrowed_each_by_itself():
    apart, together = two_convolutions(), two_convolutions()
    for model in (apart, together):
        first, second = (tensor(model.graph, f"{name}/bias") for name in ("first", "second"))
        model.buffers[second.buffer].data = model.buffers[first.buffer].data
    second.buffer = first.buffer
    narrowed = [narrow(packed(model)) for model in (apart, together)]
    for name in ("first/weights", "first/bias", "second/weights", "second/bias"):
        for found, expected in zip(*(constant(model, name) for model in narrowed), strict=True):
            np.testing.assert_array_equal(found, expected)
    biases = [constant(narrowed[1], f"{name}/bias")[0] for name in ("first", "second")]
    assert (biases[0] != biases[1]).any()


@pytest.mark.parametrize("shared", [1, 2])
def test_weights_and_biases_of_several_layers_stay(shared):
    model = two_convolutions()
    first, second = model.graph.operators
    second.inputs[shared] = first.inputs[shared]
    made = packed(model)
    assert narrow(made) is made


def test_what_has_nothing_to_round_comes_back_as_it_is():
    dense, sparse = packed(three_layers((DENSE,) * 3)), packed(three_layers((SPARSE,) * 3))
    assert narrow(dense) is dense and narrow(sparse, INT8_BITS) is sparse and narrow(sparse) is not sparse


def test_what_cannot_be_narrowed_is_refused():
    model = packed(two_convolutions())
    for bits in (2, 9):
        with pytest.raises(ValueError, match=f"weights of {bits} bits; sparse layers take 3 to 8"):
            narrow(model, bits)
        with pytest.raises(ValueError, match=f"weights of {bits} bits"):
            export_model(model, "two", "nowhere", weight_bits=bits)
    with pytest.raises(UnsupportedError, match="these 4 bytes are no TFLite model"):
        narrow(b"junk")


def test_a_model_that_is_given_is_narrowed_only_when_asked(tmp_path):
    model = packed(three_layers((SPARSE,) * 3))
    whole, narrowed = (export_model(model, "any", tmp_path / str(bits), weight_bits=bits) for bits in (INT8_BITS, 4))
    assert (whole.folder / TFLITE).read_bytes() == model
    assert (narrowed.folder / TFLITE).read_bytes() == narrow(model, 4)
    assert (whole.report["weight_bits"], narrowed.report["weight_bits"]) == (8, 4)
    assert export_model(model, "any", tmp_path / "as it is").image == whole.image
    assert len(narrowed.image) < len(whole.image)
    with pytest.raises(UnsupportedError, match="float_conv"):
        export_model(float_model(), "float", tmp_path / "float", weight_bits=4)


def test_an_encoder_is_narrowed_unless_told_otherwise(bundle):
    model = (bundle.folder / TFLITE).read_bytes()
    assert bundle.report["weight_bits"] == 5 and narrow(model, 5) is model and narrow(model, 4) is not model
    largest = [abs(layer.weight.astype(int)).max() for layer in from_tflite(model).layers if layer.kind == CONV]
    assert 15 in largest
