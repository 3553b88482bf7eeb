"""tflite-micro, the reference for every integer layer, and LiteRT's reference kernels to compare it with.

Each runs in a process of its own, as it can crash on what it does not support."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from entropi.export.workers import run_worker

TFLM, LITERT = "tflm_worker", "litert_worker"
ARENA = re.compile(r"Arena allocation total (\d+) bytes")


@dataclass(frozen=True)
class Job:
    """An int8 model, its inputs int8 [N, C, H, W], and the activations that are wanted beside its outputs."""

    model: bytes
    inputs: np.ndarray
    tensors: Sequence[int] = ()


@dataclass(frozen=True)
class Result:
    """int8 [N, F], all outputs one after the other; and the activations by tensor, int8 [N, C, H, W], or [N, C, 1, 1]
    where there is no map."""

    outputs: np.ndarray
    activations: dict[int, np.ndarray]


def run_jobs(jobs: Sequence[Job], interpreter: str = TFLM) -> list[Result]:
    """Run all `jobs` in one process of an interpreter, TFLM or LITERT. A model of several inputs gets the same values
    in each; for LITERT it must have one input and one output.

    Raises ConversionError.
    """
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        folders = [Path(name) / str(number) for number in range(len(jobs))]
        for folder, job in zip(folders, jobs, strict=True):
            folder.mkdir()
            (folder / "model.tflite").write_bytes(job.model)
            (folder / "tensors.json").write_text(json.dumps([int(index) for index in job.tensors]))
            np.save(folder / "inputs.npy", np.ascontiguousarray(job.inputs.transpose(0, 2, 3, 1)))
        run_worker(interpreter, *folders)
        return [_result(folder / "found.npz", job) for folder, job in zip(folders, jobs, strict=True)]


def run_reference(model: bytes, inputs: np.ndarray) -> np.ndarray:
    """An int8 model's outputs by tflite-micro; see run_jobs."""
    return run_jobs([Job(model, inputs)])[0].outputs


def run_layers(
    model: bytes, inputs: np.ndarray, tensors: Sequence[int], interpreter: str = TFLM
) -> dict[int, np.ndarray]:
    """The activations `tensors` of an int8 model; see run_jobs."""
    return run_jobs([Job(model, inputs, tensors)], interpreter)[0].activations


def arena_bytes(model: bytes) -> int:
    """What tflite-micro's arena takes for an int8 model, as its allocator says: activations, scratch and, with the
    pointers of this machine, its own structures. Raises ConversionError."""
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        (Path(name) / "model.tflite").write_bytes(model)
        return int(ARENA.search(run_worker(TFLM, Path(name)))[1])


def _result(path: Path, job: Job) -> Result:
    with np.load(path, allow_pickle=False) as found:
        return Result(found["outputs"], {index: _channels_first(found[str(index)]) for index in job.tensors})


def _channels_first(values: np.ndarray) -> np.ndarray:
    values = values.reshape(len(values), *values.shape[2:])  # the model's own batch of one
    return values.transpose(0, 3, 1, 2) if values.ndim == 4 else values.reshape(len(values), -1, 1, 1)
