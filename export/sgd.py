"""The head as the device trains it, in float32: the export judges by it what int8 costs."""

from __future__ import annotations

import numpy as np
import torch

from entropi.device.budget import BATCHES, recipe
from entropi.export.image import Centering

FOLDS = 4
ROUNDS = 8  # through the samples that a head learns from
MOMENTUM_BYTES = 8  # a parameter: what plan_head tries first
FARTHEST = 128 / Centering.DEVIATION  # deviations


def held_out(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool (N,): whether a head that has not learned this sample puts it into its class.

    `features` (N, F), `labels` (N,) of any integers. Each of four parts is judged by a head that learns the others, by
    plan_head's recipe, from features as the device has them: standardised, clamped beyond some deviations, and of mean
    squared norm 1."""
    classes, codes = np.unique(labels, return_inverse=True)
    deviation = features.std(0)
    x = ((features - features.mean(0)) / np.where(deviation > 0, deviation, 1)).clip(-FARTHEST, FARTHEST)
    x = torch.as_tensor(x / max(np.sqrt(np.square(x).sum(1).mean()), np.finfo(float).tiny), dtype=torch.float32)
    order = np.random.default_rng(0).permutation(len(x))
    parts = np.array_split(order, min(FOLDS, len(x)))
    others = [np.setdiff1d(order, part) for part in parts]
    weight, bias = _learn(x, torch.as_tensor(codes), len(classes), others)
    right = np.empty(len(x), bool)
    for part, w, b in zip(parts, weight, bias, strict=True):
        right[part] = (x[part] @ w + b).argmax(1).numpy() == codes[part]
    return right


def _learn(
    x: torch.Tensor, codes: torch.Tensor, classes: int, samples: list[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (heads, F, classes) and biases (heads, classes), each head learning its own samples, all side by side."""
    batch = BATCHES[0]
    how = recipe(classes, MOMENTUM_BYTES, batch)
    onehot = torch.eye(classes)
    weight, bias = (torch.zeros(len(samples), n, classes) for n in (x.shape[1], 1))
    steps, buffers = 0, [torch.zeros_like(weight), torch.zeros_like(bias)]
    rng = np.random.default_rng(0)
    least = min(map(len, samples))
    for _ in range(ROUNDS):
        shuffled = torch.as_tensor(np.stack([rng.permutation(s)[:least] for s in samples]))
        for now in shuffled.split(batch, dim=1):
            error = (torch.baddbmm(bias, x[now], weight).softmax(2) - onehot[codes[now]]) / now.shape[1]
            gradients = x[now].transpose(1, 2) @ error, error.sum(1, keepdim=True)
            rate = how.learning_rate / (1 + how.learning_rate_decay * steps)
            for parameter, buffer, gradient in zip((weight, bias), buffers, gradients, strict=True):
                parameter -= rate * buffer.mul_(how.momentum).add_(gradient)
            steps += 1
    return weight, bias.squeeze(1)
