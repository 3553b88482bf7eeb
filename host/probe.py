"""Accuracy of a linear head on frozen features: the measure of how well an encoder suits a task."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

from entropi.host.data import Dataset, Split, few_shot_indices
from entropi.host.training import outputs

# Multinomial logistic regression on standardised features, with this inverse strength of the L2 penalty.
C = 0.1
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class HeadAccuracy:
    """Test accuracy, between 0 and 1. `all`: with every training sample; `few`: with `samples_a_class` of each
    class, one value a random draw."""

    all: float
    few: tuple[float, ...]
    samples_a_class: int

    @property
    def few_mean(self) -> float:
        return statistics.fmean(self.few)

    @property
    def few_std(self) -> float:
        """Sample standard deviation over the draws; 0 for a single one."""
        return statistics.stdev(self.few) if len(self.few) > 1 else 0.0


def head_accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Train the head on `train` (N, features) and return its accuracy on `test`."""
    mean, std = train.mean(0), train.std(0)
    std = np.where(std > 0, std, 1)
    head = LogisticRegression(C=C, max_iter=MAX_ITERATIONS)
    with threadpool_limits(1):  # such small products only lose by sharing cores, and one thread makes it repeatable
        head.fit((train - mean) / std, train_labels)
        return float(head.score((test - mean) / std, test_labels))


def probe(encoder: nn.Module | None, target: Dataset, samples_a_class: int = 10, draws: int = 5) -> HeadAccuracy:
    """Train heads on the encoder's features of `target.train` and test them on `target.test`.

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
    train, test = (split.reshape(len(split), -1).astype(np.float64) for split in (train, test))
    few = []
    for draw in range(draws):
        picked = few_shot_indices(labels, samples_a_class, seed=draw)
        few.append(head_accuracy(train[picked], labels[picked], test, target.test.labels))
    return HeadAccuracy(head_accuracy(train, labels, test, target.test.labels), tuple(few), samples_a_class)


def _features(encoder: nn.Module | None, split: Split) -> np.ndarray:
    if encoder is None:
        return split.images
    return np.concatenate(list(outputs(encoder, split)))
