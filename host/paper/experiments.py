"""The paper's experiments, from data to surveys: every network, seed and target, resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropi.host import data
from entropi.host.networks import archs
from entropi.host.paper.features import FeatureStore
from entropi.host.paper.survey import survey
from entropi.host.progress import Progress
from entropi.host.training.ladder import Ladder
from entropi.host.training.schedule import PRESETS, Schedule

PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
POOLED = ("CIFAR-100", "PACS", "VLCS")
ARCHS = ("resnet18", "mobilenet_v3_large")

Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Experiments:
    """What to run: networks, seeds and a schedule on a source; and the targets, each a data set's spec.

    PACS stands for itself with its domains pooled and for each domain held out in turn. A target that is None is left
    out and its cells stay empty. Raises ValueError for an unknown network, and for no target or no seed at all."""

    schedule: Schedule = PRESETS["short"]
    archs: tuple[str, ...] = ARCHS
    seeds: int = 3
    source: str = "cifar10"
    cifar100: str | None = "cifar100,per-class=100"
    pacs: str | None = None
    vlcs: str | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds}; give at least 1")
        if not self.targets():
            raise ValueError("there is no target; give at least one of --cifar100, --pacs and --vlcs")
        for arch in self.archs:
            archs.check(arch)

    def targets(self) -> dict[str, str]:
        """From the name of a target in tables to its spec."""
        specs = {"CIFAR-100": self.cifar100, "PACS": self.pacs}
        if self.pacs:
            specs |= {f"PACS, {domain} held out": f"{self.pacs},hold-out={domain}" for domain in PACS_DOMAINS}
        specs["VLCS"] = self.vlcs
        return {name: spec for name, spec in specs.items() if spec}


def run(experiments: Experiments, folder: str | Path, bar: Bar, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Build and survey every ladder, going on with what `folder` holds; returns the surveys.

        ladders/ARCH-seedN/        features/ARCH-seedN/        surveys/ARCH-seedN.json

    Raises what data.load, Ladder.build and survey raise; data is loaded, and so checked, before anything is trained.
    """
    folder = Path(folder)
    with bar("data") as progress:
        progress(0, 1, experiments.source)
        source = data.load(experiments.source)
        targets = {}
        for name, spec in experiments.targets().items():
            progress(0, 1, spec)
            targets[name] = data.load(spec)
            if targets[name].input_shape != source.input_shape:
                raise ValueError(
                    f"{spec} has images of {targets[name].input_shape} and {experiments.source} of "
                    f"{source.input_shape}; give both the same size, such as {spec},size={source.input_shape[1]}"
                )
    store_splits = [split for target in targets.values() for split in (target.train, target.test)]
    surveys = []
    for seed in range(experiments.seeds):
        for arch in experiments.archs:
            name = f"{arch}-seed{seed}"
            with bar(name) as progress:
                ladder = Ladder.build(
                    folder / "ladders" / name,
                    arch=arch,
                    source=source,
                    schedule=experiments.schedule,
                    seed=seed,
                    progress=progress,
                )
            say(f"{name}: {len(ladder)} rungs down to alpha {ladder[-1].alpha:.4f}")
            with bar(name) as progress:
                store = FeatureStore(folder / "features" / name, store_splits)
                surveys.append(survey(ladder, targets, POOLED, store, folder / "surveys" / f"{name}.json", progress))
    return surveys
