"""ONNX: the folded network in float32, run in ONNX Runtime after writing."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from entropi.export.graph import Graph

TOLERANCE = 1e-3


class OnnxError(RuntimeError):
    """ONNX Runtime's features differ from PyTorch's by more than the tolerance."""


def write_onnx(graph: Graph, path: Path) -> None:
    """Write the folded graph as ONNX with input `image` [batch, C, H, W] and output `features` [batch, F]."""
    example = torch.zeros(2, *graph.input_shape)
    temporary = path.with_name(f".{path.name}.tmp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph.folded,
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
