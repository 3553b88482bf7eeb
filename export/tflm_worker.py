"""Runs in a process of its own: model.tflite + inputs.npy (int8 NHWC) -> outputs.npy (int8 [N, F]) by tflite-micro."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from tflite_micro.python.tflite_micro import runtime


def main(folder: Path) -> None:
    interpreter = runtime.Interpreter.from_file(str(folder / "model.tflite"))
    outputs = []
    for image in np.load(folder / "inputs.npy", allow_pickle=False):
        interpreter.set_input(image[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).reshape(-1).copy())
    np.save(folder / "outputs.npy", np.stack(outputs))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
