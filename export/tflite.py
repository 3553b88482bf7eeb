"""int8 TFLite: the one definition of the integer network. TensorFlow runs in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from itertools import dropwhile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from entropi.export.graph import Graph


class ConversionError(RuntimeError):
    """TensorFlow's converter or an interpreter failed; the message holds the end of what it printed."""


def _reason(printed: str) -> str:
    """The exception in what a worker printed, on one line; after a crash without one, the last lines."""
    _, traceback, after = printed.rpartition("Traceback (most recent call last):\n")
    if not traceback:
        return " | ".join(printed.split("\n")[-4:])
    message = [line.strip() for line in dropwhile(lambda line: line.startswith(" "), after.splitlines())]
    return " | ".join(message[:1] + message[1:][-1:])


def _run_worker(module: str, folder: Path) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "0"}
    # By path, so that the process does not import this package and torch with it; -P keeps this folder off sys.path.
    worker = Path(__file__).with_name(f"{module}.py")
    done = subprocess.run([sys.executable, "-P", worker, folder], capture_output=True, text=True, env=environment)
    if done.returncode:
        what = f"signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
        raise ConversionError(f"{module} ended with {what}: {_reason(done.stderr.strip())}")


def convert(graph: Graph, calibration: np.ndarray) -> bytes:
    """Quantise `graph` to an int8 TFLite model with int8 input and output.

    `calibration` is float32 [N, C, H, W], normalised as the network wants it; its ranges set the activation scales.
    Raises ConversionError.
    """
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        folder = Path(name)
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
        _run_worker("tflite_worker", folder)
        return (folder / "encoder_int8.tflite").read_bytes()


def run_reference(model: bytes, inputs: np.ndarray) -> np.ndarray:
    """Run an int8 model in tflite-micro: int8 [N, C, H, W] -> int8 [N, F].

    tflite-micro runs in a process of its own, as it can crash on what it does not support. Raises ConversionError.
    """
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(model)
        np.save(folder / "inputs.npy", np.ascontiguousarray(inputs.transpose(0, 2, 3, 1)))
        _run_worker("tflm_worker", folder)
        return np.load(folder / "outputs.npy", allow_pickle=False)


def run_layers(model: bytes, inputs: np.ndarray) -> dict[int, np.ndarray]:
    """Every activation of an int8 model under LiteRT's reference kernels: tensor index -> int8 [N, C, H, W].

    On convolutional networks these kernels give tflite-micro's bytes, and they show what lies between.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    source = interpreter.get_input_details()[0]["index"]
    wanted = [d["index"] for d in interpreter.get_tensor_details() if d["dtype"] is np.int8 and len(d["shape"]) == 4]
    seen: dict[int, list[np.ndarray]] = {}
    for values in inputs:
        interpreter.set_tensor(source, values.transpose(1, 2, 0)[None])
        interpreter.invoke()
        for index in wanted:
            value = interpreter.get_tensor(index)
            if value.shape[0] == 1:
                seen.setdefault(index, []).append(value[0].transpose(2, 0, 1))
    return {index: np.stack(values) for index, values in seen.items()}
