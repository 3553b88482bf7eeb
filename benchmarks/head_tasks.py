"""Heads to learn on real encoders: int8 features as the C runtime computes them, kept in a folder."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from entropi.device import Bundle, HeadConfig, HostDevice, measure
from entropi.device.budget import recipe
from entropi.device.files import write_atomically
from entropi.export.image import Centering
from entropi.export.layout import HEADER
from entropi.host import data
from entropi.host.lesson import EPOCHS, Encoded, encode, grade, teach

BATCH = 4  # plan_head's
MODES = (12, 8, 4, 2)  # bytes a parameter


@dataclass(frozen=True)
class Task:
    """What one encoder makes of one target."""

    bundle: Bundle
    target: str
    classes: int
    train: Encoded
    test: Encoded

    @property
    def name(self) -> str:
        return f"{self.bundle.report['name']} on {self.target}"

    @property
    def centering(self) -> Centering:
        """How the bundle's image centres features."""
        fields = HEADER.unpack_from(self.bundle.image)
        features, gain, centers_at, scales_at = fields[9], *fields[11:14]
        centers = np.frombuffer(self.bundle.image, np.int8, features, centers_at)
        return Centering(centers, gain, np.frombuffer(self.bundle.image, np.uint8, features, scales_at))

    def summary(self) -> dict:
        """What a result says of the task."""
        return {
            "encoder": self.bundle.report["name"],
            "image_crc32": self.bundle.image_crc32,
            "target": self.target,
            "classes": self.classes,
            "features": self.train.features.shape[1],
            "train_samples": len(self.train),
            "test_samples": len(self.test),
            "epochs": EPOCHS["all"],
        }


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that the benchmarks of heads share; `tasks` takes them."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="a folder that entropi-export made")
    made.add_argument("--targets", nargs="+", required=True, metavar="SPEC", help="data sets, such as folder:PACS")
    made.add_argument("--features", type=Path, default=Path("features"), help="where features are kept")
    made.add_argument("--seeds", type=int, default=5, help="orders in which the samples are learned")
    made.add_argument("--out", type=Path)
    return made


def command(script: str, options: argparse.Namespace) -> str:
    """The command line without private folders."""
    bundles = " ".join(bundle.name for bundle in options.bundles)
    targets = " ".join(map(title, options.targets))
    return f"python benchmarks/{script} {bundles} --targets {targets} --seeds {options.seeds}"


def title(spec: str) -> str:
    """A data set's spec without its folder."""
    parsed = data.spec.parse(spec)
    return spec.replace(parsed.path, Path(parsed.path).name, 1) if parsed.path else spec


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """Every target on every bundle."""
    for spec in options.targets:
        dataset = data.load(spec)
        for folder in options.bundles:
            bundle = Bundle.open(folder)
            train, test = _features(bundle, dataset, options.features)
            yield Task(bundle, title(spec), len(dataset.classes), train, test)


def held_out(task: Task, seed: int = 0) -> Task:
    """The task with a random fifth of its train split to be tested on; its own test split plays no part."""
    at = np.random.default_rng(seed).permutation(len(task.train))
    count = len(at) // 5
    return replace(task, train=task.train[at[count:]], test=task.train[at[:count]])


def learned(task: Task, head: HeadConfig, seed: int) -> HostDevice:
    """A device that has learned the task, every sample in each round, in the order of `seed`."""
    device = HostDevice(task.bundle, measure(task.bundle.image, head).total, head=head)
    teach(device, task.train, EPOCHS["all"], seed)
    return device


def planned(task: Task, bytes_per_parameter: int) -> HeadConfig:
    """plan_head's recipe, told how many samples come, without replay."""
    return recipe(task.classes, bytes_per_parameter, BATCH, samples=EPOCHS["all"] * len(task.train))


def accuracy(task: Task, bytes_per_parameter: int, seed: int) -> float:
    """Percent of the test samples that such a head gets right."""
    return 100 * grade(learned(task, planned(task, bytes_per_parameter), seed), task.test)


def spread(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation; the deviation of a single value is 0."""
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0}


def _features(bundle: Bundle, dataset: data.Dataset, folder: Path) -> tuple[Encoded, Encoded]:
    """Features of both splits, from the folder where it holds those of this image and data set."""
    file = folder / f"{bundle.image_crc32}-{dataset.fingerprint()[:16]}.npz"
    if not file.exists():
        print(f"encoding {len(dataset.train) + len(dataset.test):,} images of {title(dataset.name)}", flush=True)
        head = HeadConfig(len(dataset.classes), batch=1, bytes_per_parameter=2)
        devices = [HostDevice(bundle, measure(bundle.image, head).total, head=head) for _ in range(2)]
        content = io.BytesIO()
        train, test = encode(devices, dataset.train), encode(devices, dataset.test)
        np.savez(content, xtrain=train.features, ytrain=train.labels, xtest=test.features, ytest=test.labels)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())
    with np.load(file, allow_pickle=False) as kept:
        return Encoded(kept["xtrain"], kept["ytrain"]), Encoded(kept["xtest"], kept["ytest"])
