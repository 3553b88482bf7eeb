"""Networks of a test's own, by name: tiny_nets:narrow and tiny_nets:linear."""

from torch import nn


def narrow(classes: int) -> nn.Module:
    """Two padded convolutions that are cheaper as one, but wrong at the border."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 3, 2, padding=1), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(32, classes),
    )  # fmt: skip


def linear(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
