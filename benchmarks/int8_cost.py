"""What int8 costs linear heads, and how near its features stay, for rungs of ladders.

    python benchmarks/int8_cost.py IMAGES LADDER:RUNG [LADDER:RUNG ...]

Exports every rung with the training images of IMAGES, a data set's spec, and weights of 8 bits, whatever int8 costs it,
and writes results/int8_cost.json. Rows of other rungs that are there already stay.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rungs import keep_rows

from entropi.export import export_encoder
from entropi.host import data
from entropi.host.training.ladder import Rung

PACKAGES = ("torch", "tensorflow", "tflite-micro", "onnxruntime")


def measure(rung: Rung, images: data.Dataset) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        report = export_encoder(rung, images.train, Path(folder) / "build", max_drop=100, weight_bits=8).report
    noise = report["signal_to_noise_db"]
    return {
        "alpha": rung.alpha,
        "nonzeros": rung.nonzeros,
        "head": {name: value for name, value in report["head"].items() if name != "max_drop"},
        "ridge_head": report["ridge_head"],
        "int8_cosine": report["checks"]["int8_cosine"],
        "onnx_int8_cosine": report["checks"]["onnx_int8_cosine"],
        "noisiest_layer_db": min(noise.values()),
        "image_bytes": report["image_bytes"],
    }


if __name__ == "__main__":
    keep_rows("int8_cost", __doc__, PACKAGES, measure)
