"""encoder.onnx and encoder_int8.onnx: what is in them, and what ONNX Runtime makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from entropi.export import OnnxError
from entropi.export.fidelity import cosine
from entropi.export.graph import from_module
from entropi.export.onnx import check_int8_onnx, check_onnx, quantise_onnx, write_onnx


@dataclass(frozen=True)
class Written:
    """One network in both files, calibration images, and other images with PyTorch's features."""

    fp32: Path
    int8: Path
    calibration: np.ndarray
    inputs: np.ndarray
    features: np.ndarray


def write(module: torch.nn.Module, shape: tuple[int, int, int], folder: Path) -> Written:
    module, rng = module.eval(), np.random.default_rng(0)
    calibration, inputs = (rng.normal(size=(100, *shape)).astype(np.float32) for _ in range(2))
    with torch.no_grad():
        features = module(torch.from_numpy(inputs)).flatten(1).numpy()
    written = Written(folder / "encoder.onnx", folder / "encoder_int8.onnx", calibration, inputs, features)
    write_onnx(from_module(module, shape), written.fp32)
    quantise_onnx(written.fp32, calibration, written.int8)
    return written


@pytest.fixture(scope="module")
def small(network, tmp_path_factory) -> Written:
    return write(network(), (3, 16, 16), tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def every(everything, tmp_path_factory) -> Written:
    """Every operation, its weights laid out as those of a rung."""
    module = everything().to(memory_format=torch.channels_last)
    return write(module, (4, 12, 10), tmp_path_factory.mktemp("every"))


def constants(path: Path) -> dict[str, np.ndarray]:
    return {c.name: onnx.numpy_helper.to_array(c) for c in onnx.load(path).graph.initializer}


def quantised(path: Path) -> list[tuple[onnx.NodeProto, list[list[np.ndarray]]]]:
    """Convolutions and linear layers with values, scale and zero point of their weight and of their bias."""
    graph, values = onnx.load(path).graph, constants(path)
    made_by = {node.output[0]: node for node in graph.node}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    return [(node, [[values[i] for i in made_by[part].input] for part in node.input[1:]]) for node in layers]


def test_int8_features_are_close_to_torchs(small, every):
    found = check_int8_onnx(small.int8, small.fp32, small.inputs, small.features)
    assert 0.9999 < found["min"] <= found["mean"] <= 1.000001
    assert found["min"] < 0.9999999, "this is the float32 network"
    assert check_int8_onnx(every.int8, every.fp32, every.inputs, every.features)["mean"] > 0.998


def test_weights_are_int8_by_channel_and_activations_uint8(small, every):
    for written, layers in ((small, 6), (every, 6)):
        found = quantised(written.int8)
        assert len(found) == layers
        for _, ((weight, scale, zero), *bias) in found:
            assert weight.dtype == zero.dtype == np.int8 and not zero.any()
            assert scale.shape == zero.shape == (len(weight),)
            assert all(values.dtype == np.int32 for values, _, _ in bias)
        values = constants(written.int8)
        activations = [n for n in onnx.load(written.int8).graph.node if n.op_type == "QuantizeLinear"]
        assert activations and all(values[node.input[2]].dtype == np.uint8 for node in activations)


def test_pruned_weights_stay_zero(small):
    """A weight below half a step joins them; no other does."""
    float32 = constants(small.fp32)
    pruned = 0
    for node, ((weight, scale, _), _) in quantised(small.int8):
        before = float32[node.input[1].removesuffix("_DequantizeLinear_Output")]
        pruned += np.count_nonzero(before == 0)
        steps = np.abs(before) / scale.reshape(-1, 1, 1, 1)
        np.testing.assert_array_equal(weight == 0, steps <= 0.5)
        assert steps.max() < 127.01
    assert pruned > 0.7 * sum(weight.size for _, ((weight, _, _), _) in quantised(small.int8))


def test_a_channel_without_weights_keeps_its_bias(small):
    float32 = constants(small.fp32)
    for node, ((weight, _, _), (bias, scale, _)) in quantised(small.int8):
        before = float32[node.input[2].removesuffix("_DequantizeLinear_Output")]
        assert not weight[0].any() and before[0] != 0
        np.testing.assert_allclose(bias[0] * scale[0], before[0], rtol=1e-3)


def test_the_quantiser_is_quiet_and_leaves_nothing_behind(every, tmp_path, capfd, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    again = tmp_path / "again.onnx"
    quantise_onnx(every.fp32, every.calibration, again)
    assert not caplog.records and capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == [again]
    assert sorted(every.fp32.parent.iterdir()) == [every.fp32, every.int8]
    assert again.read_bytes() == every.int8.read_bytes()


def test_a_pool_of_a_network_in_channels_last_is_a_mean(every):
    assert check_onnx(every.fp32, every.inputs, every.features) < 1e-4
    operators = [node.op_type for node in onnx.load(every.fp32).graph.node]
    assert "ReduceMean" in operators and "Gather" not in operators


def test_a_pruned_weight_that_came_back_is_refused(small, tmp_path):
    model = onnx.load(small.int8)
    weight = next(c for c in model.graph.initializer if c.data_type == onnx.TensorProto.INT8 and len(c.dims) == 4)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, :2, 0] = 1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    path = tmp_path / "tampered.onnx"
    onnx.save(model, path)
    with pytest.raises(OnnxError, match=r"tampered.onnx: 2 pruned weights of \S+ are not zero$"):
        check_int8_onnx(path, small.fp32, small.inputs, small.features)


def test_a_layer_in_float32_is_refused(small):
    with pytest.raises(OnnxError, match=r"encoder.onnx: the weights \S+ are not int8$"):
        check_int8_onnx(small.fp32, small.fp32, small.inputs, small.features)


def test_cosine():
    found = np.array([[3.0, 4.0], [1.0, 0.0], [-2.0, 0.0]], np.float32)
    assert cosine(found, found) == {"mean": 1.0, "min": 1.0}
    assert cosine(found, 7 * found) == pytest.approx({"mean": 1.0, "min": 1.0})
    expected = np.array([[4.0, 3.0], [0.0, 1.0], [-1.0, 0.0]], np.float32)
    assert cosine(found, expected) == pytest.approx({"mean": (0.96 + 0 + 1) / 3, "min": 0.0})
    assert cosine(found, -found)["min"] == pytest.approx(-1)
    nothing = np.zeros((2, 3), np.float32)
    assert cosine(nothing, nothing) == {"mean": 1.0, "min": 1.0}
    assert cosine(nothing, nothing + [[0, 0, 0], [0, 1, 0]]) == {"mean": 0.5, "min": 0.0}
