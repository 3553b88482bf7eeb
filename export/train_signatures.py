"""A LiteRT model that learns what the device's head learns, for phones and Linux-class machines."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from entropi.device.bundle import Bundle, Preprocessing
from entropi.device.library import measure
from entropi.device.runtime import HostDevice
from entropi.device.session import HeadConfig
from entropi.export.image import Centering, write_image
from entropi.export.integer import Network, Tensor
from entropi.export.workers import run_worker

STEPS = 8
TOLERANCE = 1e-4


class TrainError(RuntimeError):
    """The LiteRT model does not learn what the device's head learns."""


def train_signatures(centering: Centering, head: HeadConfig, features: np.ndarray) -> bytes:
    """A .tflite model of the linear head alone: it takes the int8 features that encoder_int8.tflite gives.

    | signature | takes | gives |
    |---|---|---|
    | train | features int8 [N, F], labels int32 [N] | loss: mean cross-entropy in nats before the step |
    | infer | features int8 [N, F] | probabilities float32 [N, classes] |
    | get_weights | | weights float32 [classes, F], biases float32 [classes] |
    | set_weights | weights, biases as above | classes int32 [1] |
    | init | | classes int32 [1]; the head starts again with zeros |

    N is free. Each call of train is one step of SGD on the mean gradient of its N samples, as device/src/head.c takes
    it when a batch is full: features standardised as in the image, learning rate, momentum and weight decay of `head`,
    no step where the loss is not finite. set_weights lets the momentum start at zero, as entropi_restore does. LiteRT
    refuses a label that is no class. The other fields of `head` play no part.

    Before it returns, every signature has run in LiteRT on `features`, int8 [N, F] of N images, and the head has become
    the one that the device's C makes of the same samples in batches of `head.batch`.
    Raises DeviceError (a head out of range), ConversionError or TrainError.
    """
    samples = (STEPS - 1) * head.batch + max(head.batch // 2, 1)  # the last batch is not full
    features = features[np.arange(samples) % len(features)]
    labels = (np.arange(samples) % head.classes).astype(np.int32)
    expected = _on_the_device(centering, head, features, labels)
    with tempfile.TemporaryDirectory(prefix="entropi-") as name:
        folder = Path(name)
        settings = {
            "gain": centering.gain,
            "classes": head.classes,
            "batch": head.batch,
            "learning_rate": head.learning_rate,
            "momentum": head.momentum,
            "weight_decay": head.weight_decay,
        }
        (folder / "head.json").write_text(json.dumps(settings))
        parts = {
            "centers": centering.centers,
            "scales": centering.scales.astype(np.float32) / Centering.UNIT,
            "features": features,
            "labels": labels,
        }
        for part, values in parts.items():
            np.save(folder / f"{part}.npy", values)
        run_worker("train_worker", folder)
        with np.load(folder / "found.npz", allow_pickle=False) as found:
            _compare(dict(found), expected)
        return (folder / "encoder_train.tflite").read_bytes()


def _on_the_device(
    centering: Centering, head: HeadConfig, features: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """What the worker should find, from the C runtime with an encoder that does nothing."""
    count = len(centering.centers)
    image, _ = write_image(Network({0: Tensor(count, 1, 1, 1.0, 0)}, 0, 0), centering)
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,) * count, (1.0,) * count, 1.0, 0))
    head = replace(head, bytes_per_parameter=12, learning_rate_decay=0.0, steps=0, new_classes=0, replay=0)
    device = HostDevice(bundle, measure(image, head).total, head=head)
    losses = [device.learn_features(sample, int(label)) for sample, label in zip(features, labels, strict=True)]
    device.flush()
    parameters = device.head()
    best, probability = zip(*(device.predict_features(sample) for sample in features), strict=True)
    return {
        "losses": np.array([np.mean(losses[i : i + head.batch]) for i in range(0, len(losses), head.batch)]),
        "weights": parameters[: -head.classes].reshape(head.classes, count),
        "biases": parameters[-head.classes :],
        "best": np.array(best),
        "probability": np.array(probability),
    }


def _compare(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Raises TrainError where the two differ by more than float32 rounding, relative to the largest value."""
    best = expected.pop("best")
    found["probability"] = found["probabilities"][np.arange(len(best)), best]
    for name, values in expected.items():
        difference = np.abs(found[name] - values).max() / max(np.abs(values).max(), 1e-12)
        if not difference <= TOLERANCE:
            raise TrainError(
                f"encoder_train.tflite: its {name} differ from those of the device's head by {difference:.2g} of the "
                f"largest, allowed {TOLERANCE:.2g}"
            )
    for name in ("weights", "biases", "probabilities"):
        if (found[f"restored_{name}"] != found[name]).any():
            raise TrainError(f"encoder_train.tflite: its {name} changed between get_weights and set_weights")
