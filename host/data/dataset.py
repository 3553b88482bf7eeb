"""What every other part reads: images and labels, in two splits, under a name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


def few_shot_indices(labels: np.ndarray, samples_a_class: int, seed: int = 0) -> np.ndarray:
    """Which samples Split.few_shot takes, as indices into `labels` in the order it returns them."""
    if samples_a_class < 1:
        raise ValueError(f"samples_a_class is {samples_a_class}; it must be at least 1")
    counts = np.bincount(labels, minlength=1)
    if counts.min() < samples_a_class:
        poorest = int(counts.argmin())
        raise ValueError(
            f"class {poorest} has {counts[poorest]} samples, fewer than the {samples_a_class} a class asked for; "
            f"ask for at most {counts[poorest]} or bring more samples"
        )
    rng = np.random.default_rng(seed)
    picked = [rng.choice(np.flatnonzero(labels == c), samples_a_class, False) for c in range(len(counts))]
    return rng.permutation(np.concatenate(picked))


@dataclass(frozen=True, eq=False)
class Split:
    """images: uint8 (N, C, H, W); labels: int64 (N,). Raises ValueError where the arrays are not that."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images are {self.images.dtype} with {self.images.ndim} axes; they must be uint8 (N, C, H, W)"
            )
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {self.labels.shape}; "
                f"{len(self.images)} images need int64 ({len(self.images)},)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        for image, label in zip(self.images, self.labels, strict=True):
            yield image, int(label)

    def __getitem__(self, index: slice | np.ndarray) -> Split:
        """The samples that a slice, an index array or a mask picks, as another Split."""
        return Split(self.images[index], self.labels[index])

    def few_shot(self, samples_a_class: int, seed: int = 0) -> Split:
        """`samples_a_class` random samples of every class, without replacement, in random order.

        Classes are 0 ... the largest label. Raises ValueError when one of them has too few samples."""
        return self[few_shot_indices(self.labels, samples_a_class, seed)]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A task. `classes` holds the class names in the order of the labels."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.train.images.shape[1:]

    def fingerprint(self) -> str:
        """SHA-256 over classes, pixels and labels of both splits, in hexadecimal."""
        digest = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.test):
            digest.update(repr(split.images.shape).encode())
            digest.update(np.ascontiguousarray(split.images))
            digest.update(np.ascontiguousarray(split.labels))
        return digest.hexdigest()
