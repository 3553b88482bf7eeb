"""What every device can do, whether it is a board, an emulated board or this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from entropi.device.bundle import Bundle


@dataclass(frozen=True)
class HeadConfig:
    """How the head learns; the fields are entropi_head_config's, with its limits."""

    classes: int
    batch: int = 8
    bytes_per_parameter: int = 4
    learning_rate: float = 0.5
    momentum: float = 0.0
    weight_decay: float = 0.0
    learning_rate_decay: float = 0.0
    new_classes: int = 0
    replay: int = 0
    seed: int = 0
    steps: int = 0


SMALLEST_HEAD = HeadConfig(classes=2, batch=1)  # for sessions that only encode


@dataclass(frozen=True)
class Need:
    """Bytes of arena, part by part; the fields are entropi_need's.

    total = weights + momentum + gradient + batch + replay + max(encoder, learning).
    """

    weights: int
    momentum: int
    gradient: int
    batch: int
    replay: int
    encoder: int
    learning: int
    total: int
    given: int = 0
    missing: int = 0


class DeviceError(RuntimeError):
    """The C runtime refused. `status` is its name, such as E_ARENA; `need` is set where bytes are the reason."""

    def __init__(self, message: str, status: str = "", need: Need | None = None):
        super().__init__(message)
        self.status = status
        self.need = need


class Device(ABC):
    """An encoder and its learning head, open on some device.

    The abstract methods mirror the C API (entropi.h) on int8 inputs [C, H, W] and int8 features [F]; the others work
    on uint8 images [C, H, W] and are the same everywhere. Every method raises DeviceError when the device refuses.
    `gave_up` says in words what plan_head left out to fit the budget.
    """

    bundle: Bundle
    head_config: HeadConfig
    need: Need
    gave_up: tuple[str, ...] = ()

    @abstractmethod
    def encode(self, values: np.ndarray) -> np.ndarray:
        """Run the encoder: int8 [C, H, W] -> int8 [F]."""

    @abstractmethod
    def learn_features(self, features: np.ndarray, label: int) -> float:
        """Take in one labelled sample; returns its cross-entropy in nats before the step.

        With replay, a sample drawn from those kept is taken in after it.
        """

    @abstractmethod
    def predict_features(self, features: np.ndarray) -> tuple[int, float]:
        """The most probable class and its probability."""

    @abstractmethod
    def flush(self) -> None:
        """Apply the step for a batch that is not full."""

    @abstractmethod
    def reset(self) -> None:
        """Start again with a head of zeros."""

    @abstractmethod
    def save(self) -> None:
        """Keep the head where it survives a power cut; a cut during the save leaves the head saved before, or this."""

    @abstractmethod
    def restore(self) -> None:
        """Bring back the head saved last, momentum and waiting samples at zero. Raises DeviceError (E_EMPTY, E_DAMAGED,
        E_FOREIGN, E_VERSION) where the store holds none of this image and head format; the head is then unchanged."""

    @abstractmethod
    def head(self) -> np.ndarray:
        """The head's float32 parameters: classes x features weights row by row, then the biases."""

    @abstractmethod
    def footprint(self) -> dict:
        """What the session has cost so far, in bytes and, where they can be counted, instructions."""

    def tally(self) -> dict:
        """What the device has counted so far, JSON-able; nothing where it counts nothing."""
        return {}

    def count_from(self, tally: dict) -> None:
        """Go on counting from what another device's `tally` returned. Raises ValueError where this counts nothing."""
        if tally:
            raise ValueError(f"this device counts nothing and cannot go on from {tally}")

    @abstractmethod
    def close(self) -> None:
        """Give back what the session holds; it can be called twice."""

    def features(self, image: np.ndarray) -> np.ndarray:
        """Encode one uint8 image [C, H, W] into int8 features [F]."""
        return self.encode(self.bundle.preprocessing(image))

    def learn(self, image: np.ndarray, label: int) -> float:
        """Encode and learn one labelled image; returns its loss before the step."""
        return self.learn_features(self.features(image), label)

    def predict(self, image: np.ndarray) -> tuple[int, float]:
        """The most probable class of an image and its probability."""
        return self.predict_features(self.features(image))

    def accuracy(self, samples: Iterable[tuple[np.ndarray, int]]) -> float:
        """Fraction of (image, label) pairs that `predict` gets right. Raises ValueError when there are none."""
        hits = [self.predict(image)[0] == label for image, label in samples]
        if not hits:
            raise ValueError("accuracy needs at least one sample")
        return sum(hits) / len(hits)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
