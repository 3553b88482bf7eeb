"""How heads learn unless told otherwise: the recipe of device/budget.py, chosen without a look at any test split.

    python benchmarks/head_recipe.py BUNDLE ... --targets SPEC ... [--features FOLDER] [--seeds N]

Of every target's train split a random fifth is held out for validation, N times another one. Every pair of a learning
rate and of the samples after which it is half is learned from the rest, 8 bytes a parameter, in three lessons: 10
samples a class for 20 rounds, all samples once, all samples for 8 rounds. What counts is the mean accuracy over
bundles, targets and lessons; of the pairs within 0.1 points of the best, the one whose rate falls slowest is the
recipe, since a device may learn longer. Writes results/head_recipe.json; fails where that pair lies at an edge of the
grid, or is not the one in device/budget.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from head_tasks import BATCH, Task, command, held_out, parser, tasks

from entropi.device import HostDevice, measure
from entropi.device.budget import HALVED_AFTER, LEARNING_RATE, MOMENTUM, recipe
from entropi.device.files import write_json
from entropi.host.data import few_shot_indices
from entropi.host.lesson import EPOCHS, grade, teach
from entropi.host.provenance import provenance

RESULT = Path(__file__).resolve().parents[1] / "results" / "head_recipe.json"
RATES = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0)
HALVED = (125, 250, 500, 1000, 2000)
TIE = 0.1  # points
SAMPLES_A_CLASS = 10


def learned(whole: Task, rate: float, halved: int, seeds: int) -> dict[str, float]:
    """Percent right of the validation samples after each lesson, the mean of all splits."""
    head = recipe(whole.classes, 8, BATCH, learning_rate=rate, halved_after=halved)
    device = HostDevice(whole.bundle, measure(whole.bundle.image, head).total, head=head)
    found: dict[str, list[float]] = {"few": [], "once": [], "all": []}
    for seed in range(seeds):
        task = held_out(whole, seed)
        few = task.train[few_shot_indices(task.train.labels, SAMPLES_A_CLASS, seed=seed)]
        lessons = {"few": (few, EPOCHS["few"]), "once": (task.train, 1), "all": (task.train, EPOCHS["all"])}
        for lesson, (samples, epochs) in lessons.items():
            device.reset()
            teach(device, samples, epochs, seed)
            found[lesson].append(100 * grade(device, task.test))
    return {lesson: float(np.mean(each)) for lesson, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    grid = list(product(RATES, HALVED))
    rows = []
    for task in tasks(options):
        found = [learned(task, rate, halved, options.seeds) for rate, halved in grid]
        rows.append({**task.summary(), "accuracy": found})
        best = max(range(len(grid)), key=lambda i: np.mean(list(found[i].values())))
        print(f"{task.name}: best of its own {grid[best]}, {found[best]}", flush=True)
    means = [float(np.mean([list(row["accuracy"][i].values()) for row in rows])) for i in range(len(grid))]
    rate, halved = max((p for p, m in zip(grid, means, strict=True) if m >= max(means) - TIE), key=lambda p: p[::-1])
    for r in RATES:
        print(f"rate {r:>4g}", *(f"{means[grid.index((r, h))]:.2f}" for h in HALVED), sep="  ")
    content = {
        "command": command("head_recipe.py", options),
        "choice": f"the slowest within {TIE} points of the highest mean accuracy, on fifths of the train splits",
        "seeds": list(range(options.seeds)),
        "samples_a_class": SAMPLES_A_CLASS,
        "momentum": MOMENTUM,
        "grid": [{"rate": r, "halved_after": h, "mean_accuracy": m} for (r, h), m in zip(grid, means, strict=True)],
        "chosen": {"rate": rate, "halved_after": halved},
        **provenance("ziglang"),
        "targets": rows,
    }
    write_json(options.out or RESULT, content)
    if rate in (RATES[0], RATES[-1]) or halved in (HALVED[0], HALVED[-1]):
        raise SystemExit(f"rate {rate:g}, halved after {halved}, lies at an edge of the grid: widen it")
    if (rate, halved) != (LEARNING_RATE, HALVED_AFTER):
        kept = f"{LEARNING_RATE:g}, halved after {HALVED_AFTER}"
        raise SystemExit(f"rate {rate:g}, halved after {halved}, is best; device/budget.py has {kept}")


if __name__ == "__main__":
    main()
