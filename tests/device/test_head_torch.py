"""The head against the one that PyTorch trains on the same features, in the same order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from heads import head_bundle

from entropi.device import HeadConfig, HostDevice
from entropi.export.image import Centering

STEPS = 100
# Of the largest weight, 16 roundings of float32: a step rounds once or twice, and momentum of 0.9 adds up ten of them.
TOLERANCE = 16 * 2.0**-24
# Root mean square of the distance from float64, at the worst of the steps: ours over that of PyTorch's float32.
NOT_FURTHER = 1.5


def lesson(features: int, classes: int, count: int) -> tuple[np.ndarray, np.ndarray, Centering]:
    """int8 features [count, features] around one mean a class, with labels, centred as an export centres them."""
    rng = np.random.default_rng(0)
    base = rng.integers(-100, 0, features)
    labels = rng.integers(0, classes, count)
    noise = rng.normal(0, 30, (count, features))
    values = np.round(base + rng.normal(0, 12, (classes, features))[labels] + noise).clip(-128, 127).astype(np.int8)
    return values, labels, Centering.of(values)


class TorchHead:
    """torch.optim.SGD on a linear layer of zeros; weight decay on weights alone, a learning rate that falls as ours."""

    def __init__(self, features: int, head: HeadConfig, dtype: torch.dtype):
        self.head, self.dtype, self.steps = head, dtype, 0
        self.layer = torch.nn.Linear(features, head.classes, dtype=dtype)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        groups = [
            {"params": [self.layer.weight], "weight_decay": float(np.float32(head.weight_decay))},
            {"params": [self.layer.bias], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.SGD(groups, lr=1.0, momentum=float(np.float32(head.momentum)))

    def step(self, x: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """One step on real features [N, F]; the parameters after it, as the device's head lists them."""
        decay = float(np.float32(self.head.learning_rate_decay))
        left = (self.head.steps - self.steps) / self.head.steps if self.head.steps else 1
        for group in self.optimiser.param_groups:
            group["lr"] = float(np.float32(self.head.learning_rate)) / (1 + decay * self.steps) * left
        self.optimiser.zero_grad()
        scores = self.layer(torch.tensor(x, dtype=self.dtype))
        torch.nn.functional.cross_entropy(scores, torch.tensor(labels)).backward()
        self.optimiser.step()
        self.steps += 1
        parts = (self.layer.weight.detach().numpy().ravel(), self.layer.bias.detach().numpy())
        return np.concatenate(parts).astype(np.float64)


@pytest.mark.parametrize(
    ("features", "head", "not_further"),
    [
        (512, HeadConfig(5, 1, 8, 0.3, 0.9), NOT_FURTHER),
        (512, HeadConfig(5, 4, 8, 0.3, 0.9), NOT_FURTHER),
        (512, HeadConfig(5, 4, 8, 0.5, 0.9, steps=STEPS), NOT_FURTHER),
        (512, HeadConfig(5, 1, 4, 1.0), NOT_FURTHER),
        (512, HeadConfig(5, 4, 4, 3.0), NOT_FURTHER),
        (512, HeadConfig(5, 8, 4, 3.0, learning_rate_decay=0.01), NOT_FURTHER),
        # Products are rounded to a unit that a batch of errors of 1 would fill: the larger the batch, the coarser.
        (512, HeadConfig(10, 32, 8, 0.3, 0.9, weight_decay=1e-3, learning_rate_decay=0.01), 4.5),
    ],
)
def test_every_step_is_pytorchs_within_float32_rounding(features, head, not_further):
    torch.set_num_threads(1)
    values, labels, centering = lesson(features, head.classes, STEPS * head.batch)
    device = HostDevice(head_bundle(features, centering), "1MiB", head=head)
    real = centering.standardised(values) * float(np.float32(centering.gain))
    single, double = (TorchHead(features, head, dtype) for dtype in (torch.float32, torch.float64))
    ours, theirs = [], []
    for start in range(0, len(labels), head.batch):
        batch = slice(start, start + head.batch)
        for sample, label in zip(values[batch], labels[batch], strict=True):
            device.learn_features(sample, int(label))
        exact, rounded, found = (
            double.step(real[batch], labels[batch]),
            single.step(real[batch], labels[batch]),
            device.head(),
        )
        largest = np.abs(exact).max()
        assert np.abs(found - rounded).max() <= TOLERANCE * largest
        ours.append(np.sqrt(np.mean((found - exact) ** 2)) / largest)
        theirs.append(np.sqrt(np.mean((rounded - exact) ** 2)) / largest)
    assert max(ours) <= not_further * max(theirs)
