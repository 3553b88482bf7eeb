"""Accuracy of a linear head on frozen features: the measure of how well an encoder suits a task."""

from __future__ import annotations

import numpy as np
from torch import nn

from entropi.host import heads
from entropi.host.accuracy import HeadAccuracy
from entropi.host.data import Dataset, Split, few_shot_indices
from entropi.host.networks.inference import outputs


def probe(encoder: nn.Module | None, target: Dataset, samples_a_class: int = 10, draws: int = 5) -> HeadAccuracy:
    """Train ridge heads on the encoder's features of `target.train` and test them on `target.test`.

    Without an encoder the features are the pixels themselves: the baseline an encoder has to beat.
    Raises ValueError when a class has fewer than `samples_a_class` training samples."""
    return probe_features(
        _features(encoder, target.train), _features(encoder, target.test), target, samples_a_class, draws
    )


def probe_features(
    train: np.ndarray, test: np.ndarray, target: Dataset, samples_a_class: int = 10, draws: int = 5
) -> HeadAccuracy:
    """As `probe`, on features (N, ...) of `target.train` and `target.test` that were computed before."""
    labels = target.train.labels
    train, test = (split.reshape(len(split), -1) for split in (train, test))
    few = []
    for draw in range(draws):
        picked = few_shot_indices(labels, samples_a_class, seed=draw)
        few.append(heads.ridge(train[picked], labels[picked]).accuracy(test, target.test.labels))
    return HeadAccuracy(heads.ridge(train, labels).accuracy(test, target.test.labels), tuple(few), samples_a_class)


def _features(encoder: nn.Module | None, split: Split) -> np.ndarray:
    if encoder is None:
        return split.images
    return outputs(encoder, split)
