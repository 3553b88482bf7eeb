"""int8 TFLite: the one definition of the integer network. TensorFlow runs in a process of its own."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from entropi.export.graph import Graph
from entropi.export.workers import run_worker


def convert(graph: Graph, calibration: np.ndarray) -> bytes:
    """Quantise `graph` to an int8 TFLite model with int8 input and output.

    `calibration` is float32 [N, C, H, W], normalised as the network wants it; its ranges set the activation scales.
    Raises ConversionError.
    """
    return convert_all([(graph, calibration)])[0]


def convert_all(networks: Sequence[tuple[Graph, np.ndarray]]) -> list[bytes]:
    """convert() of each, in one process: TensorFlow takes longer to load than to convert a network."""
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        folders = [Path(name) / str(number) for number in range(len(networks))]
        for folder, (graph, calibration) in zip(folders, networks, strict=True):
            folder.mkdir()
            _write(folder, graph, calibration)
        run_worker("tflite_worker", *folders)
        return [(folder / "encoder_int8.tflite").read_bytes() for folder in folders]


def _write(folder: Path, graph: Graph, calibration: np.ndarray) -> None:
    """What the worker reads."""
    tensors = {}
    nodes = []
    for node in graph.nodes:
        fields = asdict(node)
        for part in ("weight", "bias"):
            if fields.pop(part) is not None:
                tensors[f"{node.name}.{part}"] = np.ascontiguousarray(getattr(node, part))
        nodes.append(fields)
    description = {
        "input": graph.input,
        "input_shape": graph.input_shape,
        "output": graph.output,
        "nodes": nodes,
    }
    (folder / "graph.json").write_text(json.dumps(description))
    save_file(tensors, folder / "weights.safetensors")
    np.save(folder / "calibration.npy", calibration.astype(np.float32))
