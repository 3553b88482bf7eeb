"""Runs in a process of its own: as tflm_worker.py, by LiteRT with its reference kernels; one input, one output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType


def main(folder: Path) -> None:
    interpreter = Interpreter(
        str(folder / "model.tflite"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    wanted = json.loads((folder / "tensors.json").read_text())
    found = {name: [] for name in ("outputs", *wanted)}
    for image in np.load(folder / "inputs.npy", allow_pickle=False):
        interpreter.set_tensor(source["index"], image.reshape(source["shape"]))
        interpreter.invoke()
        found["outputs"].append(interpreter.get_tensor(output["index"]).reshape(-1))
        for index in wanted:
            found[index].append(interpreter.get_tensor(index))
    np.savez(folder / "found.npz", **{str(name): np.stack(values) for name, values in found.items()})


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
