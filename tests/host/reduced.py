"""A reduction that takes seconds. As a script it is killed again and again, as tiny.py does it:

python reduced.py METHOD FOLDER EVENT..."""

import functools
import sys
from pathlib import Path

import tiny

from entropi.host.data import Dataset
from entropi.host.depth.methods import method as find
from entropi.host.depth.reduction import Reduction
from entropi.host.training.schedule import Schedule

SCHEDULE = Schedule(
    epochs_dense=2, epochs_rung=2, samples_rung=64, batch=32, lr=0.02, lr_rung=0.01, precision="float32"
)


def build(method: str, rounds: int, path: Path, source: Dataset, progress=None, **options) -> Reduction:
    """`options` are those of Reduction.build, or parameters of the method."""
    settings = {"arch": "resnet8", "schedule": SCHEDULE, "seed": 3, "threads": 1, "max_drop": 100.0} | options
    parameters = {name: settings.pop(name) for name in ("zero", "lambda_") if name in settings}
    chosen = find(method, settings["arch"]).changed(rounds=rounds, **parameters)
    return Reduction.build(path, chosen, source=source, progress=progress, **settings)


if __name__ == "__main__":
    method, rounds, folder, *events = sys.argv[1:]
    tiny.main(Path(folder), events, functools.partial(build, method, int(rounds)), Reduction.open)
