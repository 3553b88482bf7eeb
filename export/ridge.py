"""The ridge head: a linear head in closed form, which grades encoders and what quantising one costs.

Ridge regression of one-hot classes on features standardised by the mean and deviation of the training set; the penalty
is the one with the least error on samples left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

PENALTIES = tuple(10.0**power for power in range(-6, 2))  # times the number of samples
RESOLUTION = 1e-5  # a unit whose deviation is a smaller part of its values does not change, as far as float32 can tell


@dataclass(frozen=True, eq=False)
class Head:
    """weight (classes, features) and bias (classes,), float32, for features as the encoder gives them: constants that
    standardised them while training are folded in."""

    weight: np.ndarray
    bias: np.ndarray

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Top-1 accuracy, 0..1, on features (N, F) with labels (N,)."""
        return float(((features @ self.weight.T + self.bias).argmax(1) == labels).mean())


def ridge(features: np.ndarray, labels: np.ndarray) -> Head:
    """Train on features (N, F) with labels (N,) of 0 ... classes - 1, every class present."""
    return _ridge(features, labels)[0]


def held_out(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool (N,): whether the ridge head, trained on all other samples, puts this one into its class."""
    return _ridge(features, labels)[1]


def _ridge(features: np.ndarray, labels: np.ndarray) -> tuple[Head, np.ndarray]:
    """Leaving each sample out has a closed form, (y_i - f(x_i)) / (1 - h_i) with h the diagonal of the hat matrix, so
    nothing is trained twice; the penalty with the least squared error of that kind is taken, as in sklearn's
    RidgeClassifierCV."""
    from scipy.linalg import eigh

    classes, codes = np.unique(labels, return_inverse=True)
    onehot = np.eye(len(classes))[codes]
    share = onehot.mean(0)
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    std = x.std(0)
    varies = std > RESOLUTION * np.abs(x).max(0)
    std = std[varies]
    x = (x[:, varies] - mean[varies]) / std
    samples, by_unit = len(x), len(x) >= x.shape[1]
    with threadpool_limits(1):  # such small products only lose by sharing cores, and one thread makes it repeatable
        gram = x.T @ x if by_unit else x @ x.T
        values, vectors = eigh(gram, driver="evd") if x.size else (np.zeros(0), np.zeros((len(gram), 0)))
        positive = values > len(values) * np.finfo(float).eps * values.max(initial=0)
        values, vectors = values[positive], vectors[:, positive]
        basis = x @ vectors / np.sqrt(values) if by_unit else vectors
        projected, squares = basis.T @ onehot, basis**2
        best, least = None, np.inf
        for penalty in PENALTIES:
            shrink = values / (values + penalty * samples)
            leverage = 1 / samples + squares @ shrink
            error = (onehot - share - basis @ (shrink[:, None] * projected)) / (1 - leverage)[:, None]
            if (squared := float((error * error).sum())) < least:
                best, least = (shrink, error), squared
        shrink, error = best
        weight = np.zeros((len(classes), len(mean)))
        towards = vectors if by_unit else x.T @ vectors / np.sqrt(values)
        weight[:, varies] = (towards @ ((shrink / np.sqrt(values))[:, None] * projected)).T / std
    head = Head(weight.astype(np.float32), (share - weight @ mean).astype(np.float32))
    return head, (onehot - error).argmax(1) == codes
