"""How heads learn unless told otherwise: the recipe of device/budget.py, chosen without a look at any test split.

    python benchmarks/head_recipe.py BUNDLE ... --targets SPEC ... [--features FOLDER] [--seeds N]

Of every target's train split a random fifth is held out for validation, N times another one. Every pair of a learning
rate and of the samples after which it is half is learned from the rest, 8 bytes a parameter, in three lessons: 10
samples a class for 20 rounds, all samples once, all samples for 8 rounds. What counts is the mean accuracy over
bundles, targets and lessons; of the pairs within 0.1 points of the best, the one whose rate falls slowest is the
recipe, since a device may learn longer. Rates that fall to 0 over a known number of samples have a grid of their own,
whose best is the recipe. Writes results/head_recipe.json; fails where a choice lies at an edge of its grid, or is not
the one in device/budget.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
from head_tasks import BATCH, Task, command, held_out, parser, tasks

from entropi.device import HostDevice, measure
from entropi.device.budget import HALVED_AFTER, LEARNING_RATE, LEARNING_RATE_TO_ZERO, MOMENTUM, recipe
from entropi.device.files import write_json
from entropi.host.data import few_shot_indices
from entropi.host.lesson import EPOCHS, grade, teach
from entropi.host.provenance import provenance

RESULT = Path(__file__).resolve().parents[1] / "results" / "head_recipe.json"
RATES = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0)
HALVED = (125, 250, 500, 1000, 2000)
TO_ZERO = (2.0, 3.0, 5.0, 7.0, 10.0, 14.0)
TIE = 0.1  # points
SAMPLES_A_CLASS = 10


def learned(whole: Task, rate: float, halved: int | None, seeds: int) -> dict[str, float]:
    """Percent right of the validation samples after each lesson, the mean of all splits; with `halved` None the rate
    falls to 0 over the lesson."""
    found: dict[str, list[float]] = {"few": [], "once": [], "all": []}
    for seed in range(seeds):
        task = held_out(whole, seed)
        few = task.train[few_shot_indices(task.train.labels, SAMPLES_A_CLASS, seed=seed)]
        lessons = {"few": (few, EPOCHS["few"]), "once": (task.train, 1), "all": (task.train, EPOCHS["all"])}
        for lesson, (samples, epochs) in lessons.items():
            falls = {"halved_after": halved} if halved else {"samples": epochs * len(samples)}
            head = recipe(whole.classes, 8, BATCH, learning_rate=rate, **falls)
            device = HostDevice(whole.bundle, measure(whole.bundle.image, head).total, head=head)
            teach(device, samples, epochs, seed)
            found[lesson].append(100 * grade(device, task.test))
    return {lesson: float(np.mean(each)) for lesson, each in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    endless, ending = list(product(RATES, HALVED)), [(rate, None) for rate in TO_ZERO]
    grid = endless + ending
    rows = []
    for task in tasks(options):
        found = [learned(task, rate, halved, options.seeds) for rate, halved in grid]
        rows.append({**task.summary(), "accuracy": found})
        best = max(range(len(grid)), key=lambda i: np.mean(list(found[i].values())))
        print(f"{task.name}: best of its own {grid[best]}, {found[best]}", flush=True)
    means = [float(np.mean([list(row["accuracy"][i].values()) for row in rows])) for i in range(len(grid))]
    of = dict(zip(grid, means, strict=True))
    top = max(of[pair] for pair in endless)
    rate, halved = max((pair for pair in endless if of[pair] >= top - TIE), key=lambda pair: pair[::-1])
    to_zero, _ = max(ending, key=of.get)
    for r in RATES:
        print(f"rate {r:>4g}", *(f"{of[r, h]:.2f}" for h in HALVED), sep="  ")
    print("to zero", *(f"{r:g}: {of[r, None]:.2f}" for r in TO_ZERO), sep="  ")
    content = {
        "command": command("head_recipe.py", options),
        "choice": f"the slowest within {TIE} points of the highest mean accuracy, on fifths of the train splits",
        "seeds": list(range(options.seeds)),
        "samples_a_class": SAMPLES_A_CLASS,
        "momentum": MOMENTUM,
        "grid": [{"rate": r, "halved_after": h, "mean_accuracy": of[r, h]} for r, h in grid],
        "chosen": {"rate": rate, "halved_after": halved, "rate_to_zero": to_zero},
        **provenance("ziglang"),
        "targets": rows,
    }
    write_json(options.out or RESULT, content)
    for chosen, tried in ((rate, RATES), (halved, HALVED), (to_zero, TO_ZERO)):
        if chosen in (tried[0], tried[-1]):
            raise SystemExit(f"{chosen:g} lies at an edge of its grid: widen it")
    found, kept = (rate, halved, to_zero), (LEARNING_RATE, HALVED_AFTER, LEARNING_RATE_TO_ZERO)
    if found != kept:
        raise SystemExit(
            "best are rate {:g}, halved after {}, and {:g} to zero; ".format(*found)
            + "device/budget.py has {:g}, {} and {:g}".format(*kept)
        )


if __name__ == "__main__":
    main()
