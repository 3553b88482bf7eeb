"""What benchmarks of single rungs share: their arguments, and a result of one row a rung that they add to."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from entropi.device.files import write_json
from entropi.host import data
from entropi.host.provenance import provenance
from entropi.host.training.ladder import Ladder, Rung

RESULTS = Path(__file__).resolve().parents[1] / "results"


def keep_rows(
    name: str, description: str | None, packages: tuple[str, ...], measure: Callable[[Rung, data.Dataset], dict]
) -> None:
    """Measure every rung of the command line and write results/NAME.json behind each; rows of other rungs stay."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", help="a data set's spec, such as folder:PACS")
    parser.add_argument("rungs", nargs="+", metavar="LADDER:RUNG")
    options = parser.parse_args()
    images, result = data.load(options.images), RESULTS / f"{name}.json"
    rows = json.loads(result.read_bytes())["rungs"] if result.exists() else {}
    command = f"python benchmarks/{name}.py {Path(options.images).name} LADDER:RUNG ..."
    for rung in options.rungs:
        folder, _, index = rung.rpartition(":")
        ladder = Ladder.open(folder)
        rows[f"{ladder.path.name}, rung {index}"] = measure(ladder[int(index)], images)
        write_json(result, {"command": command, "images": images.name, **provenance(*packages), "rungs": rows})
