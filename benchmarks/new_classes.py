"""What replay is for: samples that come once, and classes that come later.

    python benchmarks/new_classes.py BUNDLE ... --targets SPEC ... [--features FOLDER] [--seeds N]

For every bundle and target, by plan_head's recipe with 8 bytes a parameter, with 0, 24, 96 and 384 samples for replay,
every sample is learned once: in a random order; in runs of 20 of one class; and those of the last two classes after all
others, announced as new. Heads are told how many samples come, except where classes come later. Per cent of the test
samples right, the mean of N orders: of all, of old and of new classes. Writes results/new_classes.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from head_tasks import BATCH, Task, command, parser, spread, tasks

from entropi.device import HostDevice, measure
from entropi.device.budget import recipe
from entropi.device.files import write_json
from entropi.host.lesson import order
from entropi.host.provenance import provenance

RESULT = Path(__file__).resolve().parents[1] / "results" / "new_classes.json"
NEW, RUN = 2, 20
KEPT = (0, 24, 96, 384)


def in_runs(at: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The samples `at` in runs of RUN of one class, the last run of a class shorter, in a random order of runs."""
    runs = []
    for label in np.unique(labels):
        own = at[labels[at] == label]
        runs += [own[start : start + RUN] for start in range(0, len(own), RUN)]
    return np.concatenate([runs[i] for i in np.random.default_rng(seed).permutation(len(runs))])


def new_last(at: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """The samples `at`, those of the new classes last."""
    return at[np.argsort(labels[at] > labels.max() - NEW, kind="stable")]


ORDERS = {"random": lambda at, labels, seed: at, "runs": in_runs, "new": new_last}


def learned(task: Task, kept: int, arranged: str, seed: int) -> dict[str, float]:
    """Percent right of the test samples after one round."""
    new_classes = NEW if arranged == "new" else 0
    labels = task.train.labels
    to_come = 0 if new_classes else len(labels) * (2 if kept else 1)
    head = recipe(task.classes, 8, BATCH, new_classes=new_classes, samples=to_come)
    head = replace(head, replay=kept, seed=seed)
    device = HostDevice(task.bundle, measure(task.bundle.image, head).total, head=head)
    for i in ORDERS[arranged](order(len(labels), 1, seed), labels, seed):
        device.learn_features(task.train.features[i], int(labels[i]))
    device.flush()
    right = np.array([device.predict_features(x)[0] for x in task.test.features]) == task.test.labels
    is_new = task.test.labels >= task.classes - NEW
    return {"all": 100 * right.mean(), "old": 100 * right[~is_new].mean(), "new": 100 * right[is_new].mean()}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    rows = []
    for task in tasks(options):
        ways = []
        for arranged, kept in product(ORDERS, KEPT):
            found = [learned(task, kept, arranged, seed) for seed in range(options.seeds)]
            accuracy = {part: spread([float(each[part]) for each in found]) for part in found[0]}
            ways.append({"order": arranged, "replay": kept, "accuracy": accuracy})
            means = {part: round(value["mean"], 1) for part, value in accuracy.items()}
            print(task.name, arranged, f"{kept} kept:", means, flush=True)
        rows.append({**task.summary(), "epochs": 1, "ways": ways})
    content = {
        "command": command("new_classes.py", options),
        "seeds": list(range(options.seeds)),
        "new_classes": NEW,
        "run": RUN,
        **provenance("ziglang"),
        "targets": rows,
    }
    write_json(options.out or RESULT, content)


if __name__ == "__main__":
    main()
