"""What fewer bits for the weights of sparse layers cost linear heads, and what they save, for rungs of ladders.

    python benchmarks/weight_bits.py IMAGES LADDER:RUNG [LADDER:RUNG ...]

Exports every rung with the training images of IMAGES, a data set's spec, with 8, 6, 5 and 4 bits, whatever they cost,
and writes results/weight_bits.json: heads on features that the device makes with so many bits beside the same heads on
PyTorch's. Rows of other rungs that are there already stay.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from rungs import keep_rows

from entropi.export import export_encoder
from entropi.host import data
from entropi.host.training.ladder import Rung

PACKAGES = ("torch", "tensorflow", "tflite-micro")
BITS = (8, 6, 5, 4)


def measure(rung: Rung, images: data.Dataset, bits: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        report = export_encoder(rung, images.train, Path(folder) / "build", max_drop=100, weight_bits=bits).report
    layers = [layer for layer in report["layers"] if layer["weights"]]
    return {
        "head": {name: value for name, value in report["head"].items() if name != "max_drop"},
        "ridge_head": report["ridge_head"],
        "int8_cosine": report["checks"]["int8_cosine"],
        "image_bytes": report["image_bytes"],
        "nonzeros": report["nonzeros"],
        "shannon_bound_bytes": round(sum(layer["bound"] for layer in layers)),
    }


def by_bits(rung: Rung, images: data.Dataset) -> dict:
    return {"alpha": rung.alpha, "bits": {str(bits): measure(rung, images, bits) for bits in BITS}}


if __name__ == "__main__":
    keep_rows("weight_bits", __doc__, PACKAGES, by_bits)
