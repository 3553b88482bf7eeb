"""The example of docs/depth.md: a network that becomes shallower in a minute, and what every step takes on a board.

    python benchmarks/depth_example.py

Runs the command of the page, exports every step and runs it on an emulated Cortex-M4; writes
results/depth_example.json. python benchmarks/depth_page.py then writes the page.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from depth import BOARD, RESULTS, on_the_board, step_rows

from entropi.device.files import write_json
from entropi.host import data
from entropi.host.depth.reduction import Reduction
from entropi.host.provenance import provenance

COMMAND = (
    "entropi depth --method nepenthe --arch resnet8 --source builtin:digits --epochs 8 --epochs-step 3 --batch 32 "
    "--lr 0.05 --lr-step 0.03 --no-augment --out runs/digits"
)


def main() -> None:
    with tempfile.TemporaryDirectory() as here:
        command = [sys.executable, "-m", "entropi.host.cli", *COMMAND.split()[1:]]
        subprocess.run(command, cwd=here, check=True)
        reduction = Reduction.open(Path(here, "runs/digits"))
        dataset = data.load(reduction.source)
        rows = [
            row | on_the_board(step, dataset, reduction.path / f"build-{step.index:02d}")
            for step, row in step_rows(reduction)
        ]
        content = {
            "command": COMMAND,
            "best": reduction.best.index,
            "fold": reduction.best.metadata["fold"],
            "validation_images": reduction.settings["validation_images"],
            "test_images": len(dataset.test),
            "board": BOARD,
            **provenance("torch", "tensorflow", "unicorn", "ziglang"),
            "rows": rows,
        }
        write_json(RESULTS / "depth_example.json", content)


if __name__ == "__main__":
    main()
