"""tflite-micro, the reference for every integer layer, and LiteRT's reference kernels to compare it with.

Each runs in a process of its own, as it can crash on what it does not support."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from entropi.export.workers import run_worker

TFLM, LITERT = "tflm_worker", "litert_worker"
ARENA = re.compile(r"Arena allocation total (\d+) bytes")


def run_reference(model: bytes, inputs: np.ndarray) -> np.ndarray:
    """Run an int8 model: int8 [N, C, H, W] -> int8 [N, F], all its outputs one after the other.

    A model of several inputs gets the same values in each. Raises ConversionError.
    """
    return _run(TFLM, model, inputs, ())["outputs"]


def run_layers(
    model: bytes, inputs: np.ndarray, tensors: Sequence[int], interpreter: str = TFLM
) -> dict[int, np.ndarray]:
    """The activations `tensors` of an int8 model of one input: tensor -> int8 [N, C, H, W], or [N, C, 1, 1] where it
    has no map. `interpreter` is TFLM or LITERT.

    Raises ConversionError.
    """
    found = _run(interpreter, model, inputs, tensors)
    return {index: _channels_first(found[str(index)]) for index in tensors}


def arena_bytes(model: bytes) -> int:
    """What tflite-micro's arena takes for an int8 model, as its allocator says: activations, scratch and, with the
    pointers of this machine, its own structures. Raises ConversionError."""
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        (Path(name) / "model.tflite").write_bytes(model)
        return int(ARENA.search(run_worker(TFLM, Path(name)))[1])


def _channels_first(values: np.ndarray) -> np.ndarray:
    values = values.reshape(len(values), *values.shape[2:])  # the model's own batch of one
    return values.transpose(0, 3, 1, 2) if values.ndim == 4 else values.reshape(len(values), -1, 1, 1)


def _run(worker: str, model: bytes, inputs: np.ndarray, tensors: Sequence[int]) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(model)
        (folder / "tensors.json").write_text(json.dumps([int(index) for index in tensors]))
        np.save(folder / "inputs.npy", np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)))
        run_worker(worker, folder)
        with np.load(folder / "found.npz", allow_pickle=False) as found:
            return dict(found)
