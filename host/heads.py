"""The linear heads that grade an encoder: the paper's, and the one we use unless told otherwise.

logistic  multinomial logistic regression with an L2 penalty on features standardised by the mean and deviation of the
          target training set
paper     ENTROPI's: Adam at 1e-5, times 0.99 after every epoch, batches of 128, on the features as they are; the paper
          does not say for how long, so 90 epochs, as on its source task
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

C = 0.1  # inverse strength of the logistic head's penalty
MAX_ITERATIONS = 200
TOLERANCE = 1e-3

PAPER_LR, PAPER_DECAY, PAPER_BATCH, PAPER_EPOCHS = 1e-5, 0.99, 128, 90


@dataclass(frozen=True, eq=False)
class Head:
    """weight (classes, features) and bias (classes,), float32, for features as the encoder gives them: constants that
    standardised them while training are folded in."""

    weight: np.ndarray
    bias: np.ndarray

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> float:
        """Top-1 accuracy, 0..1, on features (N, F) with labels (N,)."""
        return float(((features @ self.weight.T + self.bias).argmax(1) == labels).mean())


def logistic(features: np.ndarray, labels: np.ndarray) -> Head:
    """Train on features (N, F) with labels (N,) of 0 ... classes - 1, every class present."""
    features = np.asarray(features, np.float32)
    mean, std = features.mean(0), features.std(0)
    std = np.where(std > 0, std, 1)
    model = LogisticRegression(C=C, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    with threadpool_limits(1):  # such small products only lose by sharing cores, and one thread makes it repeatable
        model.fit((features - mean) / std, labels)
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps the second class alone
        coefficients, intercept = (
            np.stack([-coefficients[0], coefficients[0]]) / 2,
            np.append(-intercept, intercept) / 2,
        )
    weight = coefficients / std
    return Head(weight.astype(np.float32), (intercept - weight @ mean).astype(np.float32))


def paper(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> Head:
    """Train on features (N, F) with labels (N,) of 0 ... classes - 1; `seed` draws the start and the order."""
    x, y = torch.from_numpy(np.asarray(features, np.float32)), torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Linear(x.shape[1], int(y.max()) + 1)
        optimiser = torch.optim.Adam(head.parameters(), PAPER_LR, fused=True)
        decay = torch.optim.lr_scheduler.ExponentialLR(optimiser, PAPER_DECAY)
        for _ in range(PAPER_EPOCHS):
            for batch in torch.randperm(len(x)).split(PAPER_BATCH):
                optimiser.zero_grad()
                F.cross_entropy(head(x[batch]), y[batch]).backward()
                optimiser.step()
            decay.step()
    return Head(head.weight.detach().numpy(), head.bias.detach().numpy())


HEADS: dict[str, Callable[[np.ndarray, np.ndarray], Head]] = {"logistic": logistic, "paper": paper}
