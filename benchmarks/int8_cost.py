"""What int8 costs linear heads, and how near its features stay, for rungs of ladders.

    python benchmarks/int8_cost.py IMAGES LADDER:RUNG [LADDER:RUNG ...]

Exports every rung with the training images of IMAGES, a data set's spec, whatever int8 costs it, and writes
results/int8_cost.json. Rows of other rungs that are there already stay.
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
from entropi.host.training.ladder import Ladder

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "int8_cost.json"
PACKAGES = ("torch", "tensorflow", "tflite-micro", "onnxruntime")


def measure(ladder: Ladder, index: int, images: data.Dataset) -> dict:
    rung = ladder[index]
    with tempfile.TemporaryDirectory() as folder:
        report = export_encoder(rung, images.train, Path(folder) / "build", max_drop=100).report
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
        rows[f"{ladder.path.name}, rung {index}"] = measure(ladder, int(index), images)
        command = f"python benchmarks/int8_cost.py {Path(options.images).name} LADDER:RUNG ..."
        write_json(RESULT, {"command": command, "images": images.name, **provenance(*PACKAGES), "rungs": rows})


if __name__ == "__main__":
    main()
