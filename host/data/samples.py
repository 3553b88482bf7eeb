"""What a source holds, known before any image is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from entropi.host.data.dataset import Dataset

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_SPLIT_OF = {alias: split for split, aliases in _SPLITS.items() for alias in aliases}

# Of the samples with these indices, (n, C, H, W) uint8; resized to size x size unless that is None.
Read = Callable[[np.ndarray, int | None], np.ndarray]


@dataclass(frozen=True, eq=False)
class Samples:
    """labels: int64 (N,), indices into `classes`; splits: (N,) of "train", "val" and "test", or None; domains: names
    (N,), or None."""

    classes: tuple[str, ...]
    labels: np.ndarray
    read: Read
    splits: np.ndarray | None = None
    domains: np.ndarray | None = None

    @classmethod
    def of(cls, dataset: Dataset) -> Samples:
        """Those of a data set with a split of its own, in the order it has them."""
        parts = (dataset.train, dataset.test)
        images = np.concatenate([part.images for part in parts])
        return cls(
            dataset.classes,
            np.concatenate([part.labels for part in parts]),
            lambda indices, size: resized(images[indices], size),
            np.repeat(["train", "test"], [len(part) for part in parts]),
        )

    def mixed(self) -> Samples:
        """One sample of every group (split, domain, class) in turn, so that the first few stand for all.

        Whoever takes the first images of a split, as export does to calibrate, then sees every class."""
        group = groups(self.splits, self.domains, self.labels)
        by_group = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[by_group], group[by_group])
        turn = np.empty_like(group)
        turn[by_group] = np.arange(len(group)) - starts
        order = np.lexsort((group, turn))
        return Samples(
            self.classes,
            self.labels[order],
            lambda indices, size: self.read(order[indices], size),
            None if self.splits is None else self.splits[order],
            None if self.domains is None else self.domains[order],
        )


def groups(*columns: np.ndarray | None) -> np.ndarray:
    """Number of the group (N,) that each row belongs to; groups are numbered in the order of their values."""
    number = np.int64(0)
    for column in columns:
        if column is not None:
            values, place = np.unique(column, return_inverse=True)
            number = number * len(values) + place
    return number


def numbered(names: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, sorted, and labels int64 (N,), from the name of every sample's class."""
    classes, labels = np.unique(names, return_inverse=True)
    return tuple(map(str, classes)), labels.astype(np.int64)


def split_called(name: str) -> str | None:
    """train, val or test, from the word that stands for it in a folder or column; None for any other word."""
    return _SPLIT_OF.get(name.lower())


def resized(images: np.ndarray, size: int | None) -> np.ndarray:
    """uint8 (N, C, H, W) to (N, C, size, size): bilinear, antialiased, the aspect ratio not kept. None: as it is."""
    count, channels, *shape = images.shape
    if size is None or shape == [size, size]:
        return np.ascontiguousarray(images)
    result = np.empty((count, channels, size, size), np.uint8)
    for plane, target in zip(images.reshape(-1, *shape), result.reshape(-1, size, size), strict=True):
        target[:] = Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)
    return result
