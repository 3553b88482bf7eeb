"""Runs in a process of its own: head.json + centers.npy + scales.npy -> encoder_train.tflite, then trains it in LiteRT.

The samples are features.npy (int8 [N, F]) and labels.npy (int32 [N]), handed over `batch` at a time. found.npz holds
what came back: `losses` of every step, then `probabilities` of all samples, `weights` and `biases`, and these three as
`restored_...` after get_weights, init and set_weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

LARGEST = np.finfo(np.float32).max


class Head(tf.Module):
    """Softmax regression on (features - centers) * scales, rounded and clamped to int8: device/src/head.c on a whole
    batch."""

    def __init__(self, centers: np.ndarray, scales: np.ndarray, settings: dict):
        super().__init__()
        self.centers, self.scales = centers.astype(np.float32), scales
        self.gain, self.learning_rate = settings["gain"], settings["learning_rate"]
        self.momentum, self.weight_decay = settings["momentum"], settings["weight_decay"]
        self.classes = settings["classes"]
        self.weights, self.weights_momentum = (tf.Variable(tf.zeros((self.classes, len(centers)))) for _ in range(2))
        self.biases, self.biases_momentum = (tf.Variable(tf.zeros(self.classes)) for _ in range(2))

    def _standardise(self, features):
        scaled = (tf.cast(features, tf.float32) - self.centers) * self.scales
        return tf.clip_by_value(tf.floor(scaled + 0.5), -128.0, 127.0)

    def _scores(self, x):
        return self.biases + self.gain * tf.matmul(x, self.weights, transpose_b=True)

    def train(self, features, labels):
        x = self._standardise(features)
        scores = self._scores(x)
        loss = -tf.reduce_mean(tf.gather(tf.nn.log_softmax(scores), labels, axis=1, batch_dims=1))
        errors = tf.nn.softmax(scores) - tf.one_hot(labels, self.classes)
        mean = 1 / tf.cast(tf.shape(labels)[0], tf.float32)
        gradient = self.gain * mean * tf.matmul(errors, x, transpose_a=True) + self.weight_decay * self.weights
        finite = tf.abs(loss) <= LARGEST
        self._step(finite, self.weights, self.weights_momentum, gradient)
        self._step(finite, self.biases, self.biases_momentum, mean * tf.reduce_sum(errors, 0))
        return {"loss": loss}

    def _step(self, finite, parameters, momentum, gradient):
        direction = self.momentum * momentum + gradient
        momentum.assign(tf.where(finite, direction, momentum))
        parameters.assign(tf.where(finite, parameters - self.learning_rate * direction, parameters))

    def infer(self, features):
        return {"probabilities": tf.nn.softmax(self._scores(self._standardise(features)))}

    def get_weights(self):
        return {"weights": tf.identity(self.weights), "biases": tf.identity(self.biases)}

    def set_weights(self, weights, biases):
        self.weights.assign(weights)
        self.biases.assign(biases)
        self.weights_momentum.assign(tf.zeros_like(weights))
        self.biases_momentum.assign(tf.zeros_like(biases))
        return {"classes": tf.constant([self.classes])}  # a signature has to give something

    def init(self):
        return self.set_weights(tf.zeros_like(self.weights), tf.zeros_like(self.biases))


def convert(head: Head, folder: Path) -> bytes:
    features = tf.TensorSpec((None, len(head.centers)), tf.int8, "features")
    takes = {
        "train": (features, tf.TensorSpec((None,), tf.int32, "labels")),
        "infer": (features,),
        "get_weights": (),
        "set_weights": (tf.TensorSpec(head.weights.shape, name="weights"), tf.TensorSpec(head.classes, name="biases")),
        "init": (),
    }
    signatures = {name: tf.function(getattr(head, name)).get_concrete_function(*specs) for name, specs in takes.items()}
    tf.saved_model.save(head, str(folder / "saved"), signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    converter.experimental_enable_resource_variables = True
    return converter.convert()


def rehearse(model: bytes, features: np.ndarray, labels: np.ndarray, batch: int) -> dict[str, np.ndarray]:
    """Use every signature."""
    run = Interpreter(model_content=model).get_signature_runner
    run("init")()
    train, starts = run("train"), range(0, len(labels), batch)
    losses = [train(features=features[at : at + batch], labels=labels[at : at + batch])["loss"] for at in starts]
    found = {**run("infer")(features=features), **run("get_weights")()}
    run("init")()
    run("set_weights")(weights=found["weights"], biases=found["biases"])
    restored = {**run("infer")(features=features), **run("get_weights")()}
    return {"losses": np.array(losses), **found, **{f"restored_{name}": values for name, values in restored.items()}}


def main(folder: Path) -> None:
    settings = json.loads((folder / "head.json").read_text())
    parts = ("centers", "scales", "features", "labels")
    centers, scales, features, labels = (np.load(folder / f"{part}.npy", allow_pickle=False) for part in parts)
    model = convert(Head(centers, scales, settings), folder)
    (folder / "encoder_train.tflite").write_bytes(model)
    np.savez(folder / "found.npz", **rehearse(model, features, labels, settings["batch"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
