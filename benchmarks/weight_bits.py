"""What fewer bits for the weights of sparse layers cost linear heads, and what they save, for rungs of ladders.

    python benchmarks/weight_bits.py IMAGES LADDER:RUNG [LADDER:RUNG ...]

Exports every rung with the training images of IMAGES, a data set's spec, with 8, 6, 5 and 4 bits, whatever they cost,
and writes results/weight_bits.json: heads on features that the device makes with so many bits beside the same heads on
PyTorch's. Rows of other rungs that are there already stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from entropi.device.files import write_json
from entropi.export import export_encoder
from entropi.host import data
from entropi.host.provenance import provenance
from entropi.host.training.ladder import Ladder, Rung

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "weight_bits.json"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="a data set's spec, such as folder:PACS")
    parser.add_argument("rungs", nargs="+", metavar="LADDER:RUNG")
    options = parser.parse_args()
    images = data.load(options.images)
    rows = json.loads(RESULT.read_bytes())["rungs"] if RESULT.exists() else {}
    for name in options.rungs:
        folder, _, index = name.rpartition(":")
        ladder = Ladder.open(folder)
        rung = ladder[int(index)]
        by_bits = {str(bits): measure(rung, images, bits) for bits in BITS}
        rows[f"{ladder.path.name}, rung {index}"] = {"alpha": rung.alpha, "bits": by_bits}
        command = f"python benchmarks/weight_bits.py {Path(options.images).name} LADDER:RUNG ..."
        write_json(RESULT, {"command": command, "images": images.name, **provenance(*PACKAGES), "rungs": rows})


if __name__ == "__main__":
    main()
