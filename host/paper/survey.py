"""What every rung of a ladder is worth on several targets, and what each estimator would pick: the raw material of
Table 1, of Fig. 3 and of the study that decides the default estimator."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entropi.device.files import write_json
from entropi.host import heads
from entropi.host.data import Dataset
from entropi.host.entropy import ESTIMATORS
from entropi.host.paper.features import FeatureStore
from entropi.host.progress import Progress
from entropi.host.provenance import provenance
from entropi.host.selection import FEWEST_DRAWS, PROBE, Selection, select
from entropi.host.training.ladder import Ladder

FORMAT = 1
FEW = (5, 10, 50)  # samples a class
FEW_DRAWS = 3


class SurveyError(ValueError):
    """A survey file belongs to another ladder."""


def survey(
    ladder: Ladder,
    targets: Mapping[str, Dataset],
    few: Collection[str],
    store: FeatureStore,
    path: Path,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Survey `ladder` on every target that the file `path` does not hold yet; returns what the file then holds.

    `targets` maps the name a target has in tables to its data, `store` holds their images. For every target: each
    rung's estimates and the accuracy of its ridge head, the selection with all training samples, the accuracy of the
    paper's head on the dense network and on all picks; and for the targets named in `few`, what each entropy picks
    with few samples a class.
    Raises SurveyError when the file is of another ladder."""
    progress = progress or (lambda done, total, text: None)
    networks = [rung.metadata["sha256"] for rung in ladder]
    content = {
        "format": FORMAT,
        "ladder": ladder.settings,
        "rungs": [dict(rung.metadata) for rung in ladder],
        **provenance("torch", "torchvision", "numpy", "scipy", "scikit-learn"),
        "targets": {},
    }
    if path.exists():
        try:
            content = json.loads(path.read_bytes())
            readable, surveyed = content["format"] == FORMAT, [rung["sha256"] for rung in content["rungs"]]
        except (KeyError, TypeError, ValueError):
            readable = False
        if not readable:
            raise SurveyError(f"{path} is damaged or of another release; move it away or delete it")
        if surveyed != networks:
            raise SurveyError(f"{path} is about another ladder than {ladder.path}; move it away or delete it")
    missing = {name: target for name, target in targets.items() if name not in content["targets"]}
    if missing:
        total = len(ladder) * len(store)
        for done, rung in enumerate(ladder):
            store.encode(rung, lambda n, _, text, d=done: progress(d * len(store) + n, total, text))
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, target in missing.items():
        content["targets"][name] = _survey(
            ladder, target, name in few, store, lambda done, total, text, n=name: progress(done, total, f"{n}: {text}")
        )
        write_json(path, content)
    return content


def _survey(ladder: Ladder, target: Dataset, few: bool, store: FeatureStore, progress: Progress) -> dict[str, Any]:
    started = time.perf_counter()
    train, test = target.train, target.test
    selection = select(
        ladder,
        train,
        estimators=(*ESTIMATORS, PROBE),
        bootstrap=FEWEST_DRAWS,
        target=target.name,
        features=lambda rung: store(rung, train),
        progress=progress,
    )
    accuracies = []
    for done, rung in enumerate(ladder):
        progress(done, len(ladder), f"ridge head of {rung.name}")
        head = heads.ridge(store(rung, train), train.labels)
        accuracies.append(head.accuracy(store(rung, test), test.labels))
    picked = picks(selection)
    heads_of = sorted({0, selection.rung, *picked.values()})
    paper = {}
    for done, index in enumerate(heads_of):
        progress(done, len(heads_of), f"the paper's head of {ladder[index].name}")
        head = heads.paper(store(ladder[index], train), train.labels)
        paper[str(index)] = head.accuracy(store(ladder[index], test), test.labels)
    counts = [count for count in FEW if few and _enough(train.labels, count)]
    by_count = {str(count): _few(ladder, target, store, count, progress) for count in counts}
    return {
        "spec": target.name,
        "classes": len(target.classes),
        "train": len(train),
        "test": len(test),
        "estimates": {name: [rung.estimates[name] for rung in selection.rungs] for name in picked},
        "chosen": selection.rung,
        "as_good": list(selection.as_good),
        "undecided": selection.undecided,
        "picks": picked,
        "accuracy": accuracies,
        "paper_accuracy": paper,
        "seconds": round(time.perf_counter() - started, 1),
        "few": by_count,
    }


def picks(selection: Selection) -> dict[str, int]:
    """The rung with each estimator's highest value, the smallest among equals."""
    return {
        name: max(selection.rungs, key=lambda rung: (rung.estimates[name], -rung.nonzeros)).rung
        for name in selection.rungs[0].estimates
    }


def _few(ladder: Ladder, target: Dataset, store: FeatureStore, count: int, progress: Progress) -> list[dict[str, int]]:
    """What each estimator picks with `count` samples a class, once for every draw."""
    drawn = []
    for draw in range(FEW_DRAWS):
        train = target.train.few_shot(count, seed=draw)
        selection = select(
            ladder,
            train,
            estimators=tuple(ESTIMATORS),
            bootstrap=0,
            features=lambda rung, train=train: store(rung, train),
            progress=lambda done, total, text: progress(done, total, f"{count} a class, {text}"),
        )
        drawn.append(picks(selection))
    return drawn


def _enough(labels: np.ndarray, count: int) -> bool:
    return bool(np.bincount(labels).min() >= count)
