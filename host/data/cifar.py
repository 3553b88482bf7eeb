"""cifar10 and cifar100 (Krizhevsky 2009), by torchvision, which checks every file's MD5 before it unpickles it."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from entropi.device.toolchain import cache_dir
from entropi.host.data.dataset import Dataset, Split
from entropi.host.data.samples import numbered

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


def cifar10() -> Dataset:
    from torchvision.datasets import CIFAR10

    return read(CIFAR10, cache_dir() / "data")


def cifar100() -> Dataset:
    from torchvision.datasets import CIFAR100

    return read(CIFAR100, cache_dir() / "data")


def read(archive: type[CIFAR10], folder: Path) -> Dataset:
    """The official train and test images, 3x32x32, from `folder`; downloaded into it where they are not there.

    Raises ValueError where they are not there and the download fails."""
    try:
        train, test = (_split(archive(folder, train=train, download=True)) for train in (True, False))
    except (OSError, RuntimeError, HTTPException) as error:
        raise ValueError(
            f"{archive.url} cannot be downloaded ({error}); put it, MD5 {archive.tgz_md5}, into {folder} by hand, "
            "or give the images as npz:PATH"
        ) from error
    classes, labels = numbered(np.concatenate([train[1], test[1]]))
    count = len(train[1])
    return Dataset(archive.__name__, classes, Split(train[0], labels[:count]), Split(test[0], labels[count:]))


def _split(part: CIFAR10) -> tuple[np.ndarray, np.ndarray]:
    """Images, uint8 (N, 3, 32, 32), and the name of each one's class."""
    return np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.classes)[part.targets]
