"""Data sets: images and labels in two splits, under a name that one syntax gives (docs/data.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from entropi.host.data import builtin, cifar, folder, npz
from entropi.host.data.dataset import Dataset, Split, few_shot_indices
from entropi.host.data.division import check, divide
from entropi.host.data.samples import Samples
from entropi.host.data.spec import Spec, parse

__all__ = ["Dataset", "Split", "few_shot_indices", "load"]

# With a split of their own and without domains.
NAMED: dict[str, Callable[[], Dataset]] = {
    "builtin:characters": builtin.characters,
    "builtin:digits": builtin.digits,
    "builtin:digits8x8": builtin.digits8x8,
    "cifar10": cifar.cifar10,
    "cifar100": cifar.cifar100,
}
AT_PATH: dict[str, Callable[[Path], Samples]] = {"folder": folder.read, "npz": npz.read}


def load(text: str) -> Dataset:
    """The data set that a spec such as "builtin:digits" or "folder:PACS,hold-out=sketch" names.

    The same spec and the same files give the same data, bit for bit. Raises ValueError with one line that says what
    is wrong with the spec or the data, before images are decoded wherever it can be told without them."""
    spec = parse(text)
    samples = _samples(spec)
    train, test = divide(samples, spec)
    images, labels = samples.read(np.concatenate([train, test]), spec.size), samples.labels
    train, test = Split(images[: len(train)], labels[train]), Split(images[len(train) :], labels[test])
    return Dataset(str(spec), samples.classes, train, test)


def _samples(spec: Spec) -> Samples:
    if spec.source in NAMED:
        check(spec, split=True, domains=())
        return Samples.of(NAMED[spec.source]())
    if spec.kind in AT_PATH and spec.path:
        samples = AT_PATH[spec.kind](Path(spec.path).expanduser())
        domains = () if samples.domains is None else tuple(map(str, np.unique(samples.domains)))
        check(spec, split=samples.splits is not None, domains=domains)
        return samples
    choices = [*NAMED, *(f"{kind}:PATH" for kind in AT_PATH)]
    raise ValueError(f"data set {spec.source!r} is not known; choose from {', '.join(choices)}")
