"""A session: a device learns a task sample by sample, and predicts each sample before it learns it.

An interrupted session goes on from its checkpoint: the device learns the features of the samples so far once more, no
image is encoded again, and the head's CRC-32 must be what it was. It ends with the bytes of one that was not
interrupted. (A head that the device has saved would not do: momentum and replay are not stored.) At the end the device
saves its head.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from entropi.device import Bundle, Device, DeviceError
from entropi.device.library import describe
from entropi.host.data import Dataset, few_shot_indices
from entropi.host.lesson import order
from entropi.host.progress import Progress
from entropi.host.session.folder import OTHER, SessionError, SessionFolder

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
        self._first_new = len(target.classes) - settings["head"]["new_classes"]
        is_new = labels[pool] >= self._first_new
        epochs, seed = settings["epochs"], settings["seed"]
        parts = [part for part in (pool[~is_new], pool[is_new]) if len(part)]
        self.samples = np.concatenate([part[order(len(part), epochs, seed)] for part in parts])
        lengths = np.repeat([len(part) for part in parts], epochs)
        self.rounds = [0, *np.cumsum(lengths).tolist()]  # where each begins in self.samples, and where the last ends
        _, met, which = np.unique(self.samples, return_index=True, return_inverse=True)
        self._place = np.argsort(np.argsort(met))[which]  # in state.features, of every sample
        self._is_first = np.isin(np.arange(len(self.samples)), met)
        every = settings["every"] or math.ceil(len(self.samples) / GRADINGS)
        self._gradings = {*range(every, len(self.samples), every), len(self.samples)}
        if is_new.any():
            self._gradings.add(epochs * len(parts[0]))
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
        not_stored = self._save()
        return self.folder.finish(self._content(gave_up, head, not_stored), head)

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
        started = max(start for start in self.rounds if start <= self.learned)
        self._right = int(np.sum(state.predicted[started:] == labels[started : self.learned]))
        while True:
            n = self.learned
            if n in self._gradings and n not in (grading["learned"] for grading in state.gradings):
                self._keep()  # a grading that is interrupted is done again
                grading = self._grade(stop)
                if grading is None:
                    return False
                state.gradings.append({"learned": n, **grading})
            if n == total:
                return True
            if self._place[n] == len(state.features):
                state.features.append(self.device.features(self.target.train.images[self.samples[n]]))
            state.predicted.append(self.device.predict_features(state.features[self._place[n]])[0])
            state.losses.append(self._learn_one(n))
            if n in self.rounds:
                started, self._right = n, 0
            self._right += int(state.predicted[n] == labels[n])
            progress(n + 1, total, self._news(n + 1 - started))
            if self._is_over(stop):
                return False

    def _learn_one(self, n: int) -> float:
        """Learn sample n; its loss in nats. The last one completes its batch."""
        features = self.folder.state.features[self._place[n]]
        loss = self.device.learn_features(features, int(self.target.train.labels[self.samples[n]]))
        if n + 1 == len(self.samples):
            self.device.flush()
        return loss

    def _grade(self, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Fraction of the held-out images that the device predicts right, of all, and where new classes are to come of
        the old and of the new; None when it is to stop."""
        labels, hits = self.target.test.labels, []
        for features, label in zip(self.folder.state.held_out, labels, strict=True):
            if stop():
                return None
            hits.append(self.device.predict_features(features)[0] == label)
        shares = {"accuracy": np.ones(len(hits), bool)}
        if self._first_new < len(self.target.classes):
            shares |= {
                "accuracy_old_classes": labels < self._first_new,
                "accuracy_new_classes": labels >= self._first_new,
            }
        return {name: float(np.mean(np.array(hits)[share])) for name, share in shares.items() if share.any()}

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

    def _save(self) -> str:
        """Have the device keep its head; in words why it cannot, or nothing."""
        try:
            self.device.save()
        except DeviceError as error:
            if not error.status:
                raise
            return str(error)
        return ""

    def _head_crc32(self) -> int:
        return zlib.crc32(self.device.head().tobytes())

    def _news(self, met: int) -> str:
        """What there is to tell after `met` samples of a round."""
        state = self.folder.state
        held_out = f", held out {state.gradings[-1]['accuracy']:.1%}" if state.gradings else ""
        return (
            f"{self._right / met:.1%} so far, loss {np.mean(state.losses[-RECENT:]):.2f}{held_out}, "
            f"arena {self.device.need.total:,} bytes"
        )

    def _content(self, gave_up: Sequence[str], head: np.ndarray, not_stored: str) -> dict:
        state, labels = self.folder.state, self.target.train.labels[self.samples]
        hits = np.equal(state.predicted, labels)[self._is_first]
        return {
            "classes": list(self.target.classes),
            **{name: share for name, share in state.gradings[-1].items() if name != "learned"},
            "accuracy_before_learning": float(np.mean(hits)),
            "held_out": state.gradings,
            "rounds": self.rounds,
            "head_crc32": f"{zlib.crc32(head.tobytes()):08x}",
            "not_stored": not_stored,
            "gave_up": list(gave_up),
            "footprint": self.device.footprint(),
            "samples": {
                "index": self.samples.tolist(),
                "label": labels.tolist(),
                "predicted": state.predicted,
                "loss": state.losses,
            },
        }


def session_length(target: Dataset, samples_a_class: int | None, epochs: int) -> int:
    """How many samples a session learns."""
    return epochs * (samples_a_class * len(target.classes) if samples_a_class else len(target.train))


def check_target(target: Dataset, bundle: Bundle, samples_a_class: int | None = None, new_classes: int = 0) -> None:
    """Raise ValueError, before any long work, when the images do not fit the encoder, a class is too small, or none is
    left to begin with."""
    info = describe(bundle.image)
    shape = (info.channels, info.height, info.width)
    if target.input_shape != shape:
        raise ValueError(
            f"{target.name} has images of {target.input_shape} and the encoder takes {shape}; "
            "choose a target of that shape"
        )
    if len(target.classes) < 2:
        raise ValueError(f"{target.name} has the one class {target.classes[0]!r}; a head tells 2 or more apart")
    check_new_classes(new_classes, len(target.classes))
    if samples_a_class:
        few_shot_indices(target.train.labels, samples_a_class)


def check_new_classes(new_classes: int, classes: int) -> None:
    """Raise ValueError when all classes are to come later."""
    if new_classes >= classes:
        raise ValueError(
            f"{new_classes} new classes of {classes} leave none to begin with; let at most {classes - 1} come later"
        )
