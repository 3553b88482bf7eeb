"""What replay is for: samples that come once, and classes that come later.

    python benchmarks/new_classes.py BUNDLE ... --targets SPEC ... [--features FOLDER] [--seeds N]

For every bundle and target, by plan_head's recipe with 8 bytes a parameter, with 0, 96 and 384 samples for replay:
every sample once in a random order; and every sample once, those of the last two classes after all others, announced as
new. Per cent of the test samples right, the mean of N orders: of all, of old and of new classes. Writes
results/new_classes.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from head_tasks import BATCH, Task, command, parser, spread, tasks

from entropi.device import HostDevice, measure
from entropi.device.budget import recipe
from entropi.device.files import write_json
from entropi.host.lesson import order
from entropi.host.provenance import provenance

RESULT = Path(__file__).resolve().parents[1] / "results" / "new_classes.json"
NEW = 2
KEPT = (0, 96, 384)


def learned(task: Task, kept: int, new_classes: int, seed: int) -> dict[str, float]:
    """Percent right of the test samples, those of new classes learned last."""
    head = replace(recipe(task.classes, 8, BATCH, new_classes=new_classes), replay=kept, seed=seed)
    device = HostDevice(task.bundle, measure(task.bundle.image, head).total, head=head)
    at = order(len(task.train), 1, seed)
    first_new = task.classes - new_classes
    for i in at[np.argsort(task.train.labels[at] >= first_new, kind="stable")]:
        device.learn_features(task.train.features[i], int(task.train.labels[i]))
    device.flush()
    right = np.array([device.predict_features(x)[0] for x in task.test.features]) == task.test.labels
    is_new = task.test.labels >= task.classes - NEW
    return {"all": 100 * right.mean(), "old": 100 * right[~is_new].mean(), "new": 100 * right[is_new].mean()}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    rows = []
    for task in tasks(options):
        ways = []
        for new_classes in (0, NEW):
            for kept in KEPT:
                found = [learned(task, kept, new_classes, seed) for seed in range(options.seeds)]
                accuracy = {part: spread([float(each[part]) for each in found]) for part in found[0]}
                ways.append({"new_classes": new_classes, "replay": kept, "accuracy": accuracy})
                means = {part: round(value["mean"], 1) for part, value in accuracy.items()}
                print(task.name, f"{new_classes} new classes, {kept} kept:", means, flush=True)
        rows.append({**task.summary(), "epochs": 1, "ways": ways})
    content = {
        "command": command("new_classes.py", options),
        "seeds": list(range(options.seeds)),
        "new_classes": NEW,
        **provenance("ziglang"),
        "targets": rows,
    }
    write_json(options.out or RESULT, content)


if __name__ == "__main__":
    main()
