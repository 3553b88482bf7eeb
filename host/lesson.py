"""Teaching a device: every image is encoded once, on the device; the head then learns from the features, by SGD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from entropi.device import Device
from entropi.host.accuracy import HeadAccuracy
from entropi.host.data import Split, few_shot_indices
from entropi.host.progress import Progress

EPOCHS = {"few": 20, "all": 8}


@dataclass(frozen=True)
class Encoded:
    """int8 features [N, F] as the device computed them, with their labels."""

    features: np.ndarray
    labels: np.ndarray

    def __getitem__(self, index: np.ndarray) -> Encoded:
        return Encoded(self.features[index], self.labels[index])

    def __len__(self) -> int:
        return len(self.labels)


def encode(
    devices: Sequence[Device], split: Split, progress: Progress | None = None, text: str = "encoding"
) -> Encoded:
    """Features of every image of `split`, the work shared between `devices` that hold the same encoder.

    `progress` gets (images done, images in all, text).
    """
    done = 0

    def share(device: Device, images: np.ndarray) -> list[np.ndarray]:
        nonlocal done
        features = []
        for image in images:
            features.append(device.features(image))
            done += 1
            if progress:
                progress(done, len(split), text)
        return features

    with ThreadPoolExecutor(len(devices)) as pool:
        parts = pool.map(share, devices, np.array_split(split.images, len(devices)))
        return Encoded(np.stack([features for part in parts for features in part]), split.labels)


def order(count: int, epochs: int, seed: int = 0) -> np.ndarray:
    """Which of `count` samples are learned one after the other, int64 [epochs * count]: all of them in each round, in
    a new random order."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(count) for _ in range(epochs)])


def teach(
    device: Device, samples: Encoded, epochs: int, seed: int = 0, on_sample: Callable[[], None] | None = None
) -> None:
    """Learn `samples` for `epochs` rounds."""
    for i in order(len(samples), epochs, seed):
        device.learn_features(samples.features[i], int(samples.labels[i]))
        if on_sample:
            on_sample()
    device.flush()


def grade(device: Device, samples: Encoded) -> float:
    """Fraction of `samples` that the device predicts right."""
    hits = [device.predict_features(x)[0] == y for x, y in zip(samples.features, samples.labels, strict=True)]
    return float(np.mean(hits))


def lesson(
    device: Device,
    train: Encoded,
    test: Encoded,
    samples_a_class: int = 10,
    draws: int = 5,
    progress: Progress | None = None,
) -> HeadAccuracy:
    """Teach the device from nothing: `draws` times with few samples, then with all of them.

    The head of the last lesson, with every sample, stays on the device. Raises ValueError when a class has fewer than
    `samples_a_class` samples.
    """
    lessons = [(train[few_shot_indices(train.labels, samples_a_class, seed=d)], EPOCHS["few"]) for d in range(draws)]
    lessons.append((train, EPOCHS["all"]))
    total = sum(len(samples) * epochs for samples, epochs in lessons)
    done = 0
    accuracies = []
    for number, (samples, epochs) in enumerate(lessons):
        text = f"learning, {samples_a_class} a class, draw {number + 1}" if number < draws else "learning, all samples"

        def on_sample(text: str = text) -> None:
            nonlocal done
            done += 1
            if progress:
                progress(done, total, text)

        device.reset()
        teach(device, samples, epochs, seed=number, on_sample=on_sample)
        accuracies.append(grade(device, test))
    return HeadAccuracy(accuracies[-1], tuple(accuracies[:-1]), samples_a_class)
