"""The README's table: runs the demo in a fresh folder and keeps its figures, with what they were measured on.

    python benchmarks/demo.py [--out FOLDER]

Writes results/demo.json and copies the picture to docs/entropy.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from entropi.device.files import write_json
from entropi.host.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "tensorflow", "tflite-micro", "ziglang", "unicorn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the demo; an unfinished ladder in it is gone on with")
    folder = parser.parse_args().out or Path(tempfile.mkdtemp(prefix="entropi-demo-"))
    command = ["entropi", "demo", "--out", "FOLDER", "--json"]
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([program, "demo", "--out", folder, "--json"], stdout=subprocess.PIPE, text=True, check=True)
    result = {
        "command": " ".join(command),
        "seed": json.loads((folder / "ladder" / "ladder.json").read_text())["settings"]["seed"],
        **provenance(*PACKAGES),
        "result": json.loads(done.stdout),
    }
    write_json(ROOT / "results" / "demo.json", result)
    shutil.copyfile(folder / "entropy.png", ROOT / "docs" / "entropy.png")


if __name__ == "__main__":
    main()
