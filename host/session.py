"""A session: a device learns a task sample by sample, and predicts each sample before it learns it.

An interrupted session goes on from its checkpoint: the device learns the features of the samples so far once more, no
image is encoded again, and the head's CRC-32 must be what it was. It ends with the bytes of one that was not
interrupted.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from entropi.device import Bundle, Device
from entropi.device.library import describe
from entropi.host.data import Dataset, few_shot_indices
from entropi.host.lesson import order
from entropi.host.progress import Progress
from entropi.host.session_folder import OTHER, SessionError, SessionFolder

CHECKPOINT_SECONDS = 20
GRADINGS = 10  # held-out accuracies of a session, unless its settings say otherwise
RECENT = 100  # samples whose mean loss is shown while it runs


class Session:
    """The session of `folder` on a device that was opened with its settings' head, on the task `target`."""

    def __init__(self, folder: SessionFolder, device: Device, target: Dataset):
        settings = folder.settings
        self.folder = folder
        self.device = device
        self.target = target
        labels = target.train.labels
        pool = np.arange(len(labels))
        if settings["samples_a_class"]:
            pool = few_shot_indices(labels, settings["samples_a_class"], settings["seed"])
        self.round = len(pool)
        shuffled = order(len(pool), settings["epochs"], settings["seed"])
        self.samples = pool[shuffled]
        first_met = np.argsort(shuffled[: len(pool)])
        self._place = first_met[shuffled]  # in state.features, of every sample
        self._every = settings["every"] or math.ceil(len(self.samples) / GRADINGS)
        self._right = 0  # of this round's samples
        self._kept_at = time.monotonic()

    @property
    def learned(self) -> int:
        """Samples learned so far, of len(self.samples)."""
        return len(self.folder.state.losses)

    def run(
        self,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
        gave_up: Sequence[str] = (),
    ) -> dict | None:
        """Learn what is left; returns what session.json holds, or None when `stop` has said so: run again to go on.

        `gave_up` is plan_head's. Raises DeviceError where the device refuses, SessionError where it does not come to
        the head that it had.
        """
        if self.folder.finished:
            return self.folder.finished
        progress = progress or (lambda done, total, text: None)
        self.device.reset()
        for step in (self._repeat, self._encode_held_out, self._learn):
            if not step(progress, stop):
                return None
        head = self.device.head()
        return self.folder.finish(self._content(gave_up, head), head)

    def _repeat(self, progress: Progress, stop: Callable[[], bool]) -> bool:
        """Bring the device to where the checkpoint was written."""
        state = self.folder.state
        for n in range(self.learned):
            if stop():
                return False
            self._learn_one(n)
            progress(n + 1, self.learned, "repeating what was learned")
        if self.learned and self._head_crc32() != state.head_crc32:
            raise SessionError(
                f"{self.folder.path}: the device has not come to the head that it had after {self.learned} samples; "
                f"has its firmware changed? {OTHER}"
            )
        if state.tally:
            self.device.count_from(state.tally)
        return True

    def _encode_held_out(self, progress: Progress, stop: Callable[[], bool]) -> bool:
        images, found = self.target.test.images, self.folder.state.held_out
        while len(found) < len(images):
            found.append(self.device.features(images[len(found)]))
            progress(len(found), len(images), "encoding the held-out images")
            if self._is_over(stop):
                return False
        return True

    def _learn(self, progress: Progress, stop: Callable[[], bool]) -> bool:
        state, total = self.folder.state, len(self.samples)
        labels = self.target.train.labels[self.samples]
        started = self.learned // self.round * self.round
        self._right = int(np.sum(state.predicted[started:] == labels[started : self.learned]))
        while True:
            n = self.learned
            if (n == total or n and n % self._every == 0) and n not in dict(state.gradings):
                self._keep()  # a grading that is interrupted is done again
                accuracy = self._grade(stop)
                if accuracy is None:
                    return False
                state.gradings.append((n, accuracy))
            if n == total:
                return True
            if self._place[n] == len(state.features):
                state.features.append(self.device.features(self.target.train.images[self.samples[n]]))
            state.predicted.append(self.device.predict_features(state.features[self._place[n]])[0])
            state.losses.append(self._learn_one(n))
            self._right = (self._right if n % self.round else 0) + int(state.predicted[n] == labels[n])
            progress(n + 1, total, self._news(n % self.round + 1))
            if self._is_over(stop):
                return False

    def _learn_one(self, n: int) -> float:
        """Learn sample n; its loss in nats. The last one completes its batch."""
        features = self.folder.state.features[self._place[n]]
        loss = self.device.learn_features(features, int(self.target.train.labels[self.samples[n]]))
        if n + 1 == len(self.samples):
            self.device.flush()
        return loss

    def _grade(self, stop: Callable[[], bool]) -> float | None:
        """Fraction of the held-out images that the device predicts right; None when it is to stop."""
        hits = 0
        for features, label in zip(self.folder.state.held_out, self.target.test.labels, strict=True):
            if stop():
                return None
            hits += self.device.predict_features(features)[0] == label
        return hits / len(self.target.test)

    def _is_over(self, stop: Callable[[], bool]) -> bool:
        """Write a checkpoint when it is time to, or to stop; whether it is to stop."""
        stopping = stop()
        if stopping or time.monotonic() - self._kept_at > CHECKPOINT_SECONDS:
            self._keep()
        return stopping

    def _keep(self) -> None:
        self.folder.state.head_crc32 = self._head_crc32()
        self.folder.state.tally = self.device.tally()
        self.folder.keep()
        self._kept_at = time.monotonic()

    def _head_crc32(self) -> int:
        return zlib.crc32(self.device.head().tobytes())

    def _news(self, met: int) -> str:
        """What there is to tell after `met` samples of a round."""
        state = self.folder.state
        held_out = f", held out {state.gradings[-1][1]:.1%}" if state.gradings else ""
        return (
            f"{self._right / met:.1%} so far, loss {np.mean(state.losses[-RECENT:]):.2f}{held_out}, "
            f"arena {self.device.need.total:,} bytes"
        )

    def _content(self, gave_up: Sequence[str], head: np.ndarray) -> dict:
        state, labels = self.folder.state, self.target.train.labels[self.samples]
        hits = state.predicted[: self.round] == labels[: self.round]
        return {
            "classes": list(self.target.classes),
            "accuracy": state.gradings[-1][1],
            "accuracy_before_learning": float(np.mean(hits)),
            "held_out": [{"learned": n, "accuracy": accuracy} for n, accuracy in state.gradings],
            "round": self.round,
            "head_crc32": f"{zlib.crc32(head.tobytes()):08x}",
            "gave_up": list(gave_up),
            "footprint": self.device.footprint(),
            "samples": {
                "index": self.samples.tolist(),
                "label": labels.tolist(),
                "predicted": state.predicted,
                "loss": state.losses,
            },
        }


def check_target(target: Dataset, bundle: Bundle, samples_a_class: int | None) -> None:
    """Raise ValueError, before any long work, when the images do not fit the encoder or a class is too small."""
    info = describe(bundle.image)
    shape = (info.channels, info.height, info.width)
    if target.input_shape != shape:
        raise ValueError(
            f"{target.name} has images of {target.input_shape} and the encoder takes {shape}; "
            "choose a target of that shape"
        )
    if samples_a_class:
        few_shot_indices(target.train.labels, samples_a_class)
