"""ONNX: the folded network in float32 and quantised to int8, each run in ONNX Runtime after writing."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.quant_utils import TENSOR_NAME_QUANT_SUFFIX
from onnxruntime.quantization.shape_inference import quant_pre_process

from entropi.device.files import write_atomically
from entropi.export.fidelity import cosine
from entropi.export.graph import Graph

TOLERANCE = 1e-3
CALIBRATION_BATCH = 32
INT8_MAX = 127


class OnnxError(RuntimeError):
    """An ONNX file is not the network that it was made from: its features differ, or weights that are pruned are not
    zero, or stayed in float32."""


def write_onnx(graph: Graph, path: Path) -> None:
    """Write the folded graph as ONNX with input `image` [batch, C, H, W] and output `features` [batch, F]."""
    folded = graph.folded.to(memory_format=torch.contiguous_format)  # channels_last pools become Gathers
    example = torch.zeros(2, *graph.input_shape)
    temporary = path.with_name(f".{path.name}.tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            folded,
            (example,),
            temporary,
            dynamo=True,
            input_names=["image"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    temporary.replace(path)


def run_onnx(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Features float32 [N, F] of normalised float32 inputs [N, C, H, W] under ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"image": inputs.astype(np.float32)})[0]


def check_onnx(path: Path, inputs: np.ndarray, features: np.ndarray) -> float:
    """Largest difference from PyTorch's `features`, relative to their largest magnitude.

    Raises OnnxError above 1e-3.
    """
    found = run_onnx(path, inputs).reshape(features.shape)
    difference = float(np.abs(found - features).max() / max(np.abs(features).max(), 1e-12))
    if not difference <= TOLERANCE:
        raise OnnxError(f"{path}: ONNX Runtime differs from PyTorch by {difference:.2g}, allowed {TOLERANCE:.2g}")
    return difference


class _Batches(quantization.CalibrationDataReader):
    def __init__(self, images: np.ndarray):
        starts = range(0, len(images), CALIBRATION_BATCH)
        self._batches = iter([{"image": images[start : start + CALIBRATION_BATCH]} for start in starts])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _weights(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Weights of all convolutions and linear layers, output channel first, and their biases: name -> (weight, bias)."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight, *bias = (onnx.numpy_helper.to_array(constants[name]) for name in node.input[1:])
            found[node.input[1]] = weight, bias[0] if bias else None
    return found


def _ranges(model: onnx.ModelProto) -> dict[str, list[dict]]:
    """What sets the scale of each output channel: its largest weight or, where all are pruned, its bias. For those the
    quantizer would take the scale 1, and round the bias to whole steps of the layer's input."""
    ranges = {}
    for name, (weight, bias) in _weights(model).items():
        limits = np.abs(weight).max(axis=tuple(range(1, weight.ndim)))
        if bias is not None:
            limits = np.where(limits == 0, np.abs(bias) / INT8_MAX, limits)
        ranges[name] = [{"axis": 0, "rmin": -limit, "rmax": limit} for limit in limits]
    return ranges


def quantise_onnx(path_fp32: Path, calibration: np.ndarray, path_int8: Path) -> None:
    """Quantise the file of write_onnx with ONNX Runtime's quantizer, in QDQ form; input and output stay float32.

    `calibration` is float32 [N, C, H, W], normalised as the network wants it; its ranges set the activation scales.
    Weights are int8 with zero point 0 and a scale for each output channel, activations uint8, which x86 computes 5 to
    20 times faster than int8. What the quantizer has no int8 form for, HardSwish say, runs in float32 in between.
    """
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:  # the quantizer writes beside what it reads
        prepared, quantised = Path(name) / "prepared.onnx", Path(name) / "quantised.onnx"
        quant_pre_process(path_fp32, prepared, skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        quantization.quantize_static(
            prepared,
            quantised,
            _Batches(calibration.astype(np.float32)),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            nodes_to_exclude=[node.name for node in model.graph.node if node.op_type == "BatchNormalization"],
            extra_options={"TensorQuantOverrides": _ranges(model)},
        )
        write_atomically(path_int8, quantised.read_bytes())


def check_int8_onnx(path_int8: Path, path_fp32: Path, inputs: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """Cosine of its features to PyTorch's `features` [N, F] of `inputs`, as cosine() has it.

    Raises OnnxError where a convolution or linear layer is not int8, or a weight that is zero in float32 is not zero.
    """
    constants = {constant.name: constant for constant in onnx.load(path_int8).graph.initializer}
    for name, (weight, _) in _weights(onnx.load(path_fp32)).items():
        quantised = constants.get(name + TENSOR_NAME_QUANT_SUFFIX)
        if quantised is None or quantised.data_type != onnx.TensorProto.INT8:
            raise OnnxError(f"{path_int8}: the weights {name} are not int8")
        revived = np.count_nonzero(onnx.numpy_helper.to_array(quantised)[weight == 0])
        if revived:
            raise OnnxError(f"{path_int8}: {revived} pruned weights of {name} are not zero")
    return cosine(run_onnx(path_int8, inputs).reshape(features.shape), features)
