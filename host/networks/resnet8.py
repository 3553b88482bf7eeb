"""ResNet8, the image-classification network of MLPerf Tiny (github.com/mlcommons/tiny, keras_model.py)."""

from __future__ import annotations

import torch
from torch import nn


class ResNet8(nn.Module):
    """float32 (N, 3, H, W) to logits (N, classes), by way of 64 features; made for 32x32.

    Three residual stacks of 16, 32 and 64 channels, convolutions with biases and batch norm, drawn as He et al. do.
    Strided convolutions pad alike on all sides, where the original pads on the right and below only, so its trained
    weights do not carry over exactly."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.stacks = nn.Sequential(_Stack(16, 16, 1), _Stack(16, 32, 2), _Stack(32, 64, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pool(self.stacks(self.stem(x))).flatten(1))


class _Stack(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution without batch norm where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.shortcut(x) + self.body(x))
