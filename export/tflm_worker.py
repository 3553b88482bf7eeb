"""Runs in a process of its own: model.tflite + inputs.npy (int8 NHWC) + tensors.json -> found.npz by tflite-micro, in
each folder.

found.npz holds `outputs`, int8 [N, F], and under its number every tensor that tensors.json lists. Without inputs.npy it
prints what the arena holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tflite_micro.python.tflite_micro import runtime

ARENA_BYTES = 1 << 26


def main(folder: Path) -> None:
    model = (folder / "model.tflite").read_bytes()
    if not (folder / "inputs.npy").exists():
        runtime.Interpreter.from_bytes(model, arena_size=ARENA_BYTES).print_allocations()
        return
    graph = runtime.schema_fb.Model.GetRootAs(model).Subgraphs(0)
    interpreter = runtime.Interpreter.from_bytes(
        model,
        arena_size=ARENA_BYTES,
        intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors,
    )
    wanted = json.loads((folder / "tensors.json").read_text())
    found = {name: [] for name in ("outputs", *wanted)}
    for image in np.load(folder / "inputs.npy", allow_pickle=False):
        for number in range(graph.InputsLength()):
            interpreter.set_input(image.reshape(interpreter.get_input_details(number)["shape"]), number)
        interpreter.invoke()
        outputs = [interpreter.get_output(number).reshape(-1) for number in range(graph.OutputsLength())]
        found["outputs"].append(np.concatenate(outputs))
        for index in wanted:
            found[index].append(interpreter.GetTensor(index, 0)["tensor_data"].copy())
    np.savez(folder / "found.npz", **{str(name): np.stack(values) for name, values in found.items()})


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        main(Path(argument))
