"""One small residual network with batch norm, exported once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from entropi.export import export_encoder


class Block(nn.Module):
    """A residual block as torchvision has it; strided with a 1x1 convolution on the skip where `stride` is above 1."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def small_network() -> nn.Sequential:
    """3x16x16 -> 24 features over a last map of 2x2; 80 % pruned, channel 0 of every convolution dead."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    network = nn.Sequential(*stem, Block(16, 16, 1), Block(16, 24, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data *= torch.rand(module.weight.shape, generator=generator) < 0.2
            module.weight.data[0] = 0
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.2, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.3, 0.3, generator=generator)
    return network


class Everything(nn.Module):
    """Every operation there is, as a module, as a function or as a method."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(4, 8, 3, (2, 1), 1, groups=4)
        self.grouped = nn.Conv2d(8, 6, 3, padding="same", dilation=2, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 3, 1), nn.SiLU(), nn.Conv2d(3, 6, 1), nn.Hardsigmoid()
        )
        self.average = nn.AvgPool2d(2, padding=1)
        self.flatten = nn.Flatten()
        self.first, self.second = nn.Linear(12 * 4 * 6, 9), nn.Linear(9, 5, bias=False)

    def forward(self, x):
        x = nn.functional.relu6(self.depthwise(x))
        x = self.norm(torch.tanh(self.grouped(x)))
        x = x * self.squeeze(x) + nn.functional.hardswish(x, inplace=True)
        x = torch.cat([torch.relu(x), x.sigmoid()], dim=1)
        x = nn.functional.dropout(self.average(x) - nn.functional.max_pool2d(x, 2, padding=1), training=self.training)
        return self.second(self.first(self.flatten(x)).relu())


def every_operation() -> nn.Module:
    """Everything, with batch norm that has seen something."""
    torch.manual_seed(0)
    module = Everything()
    module.norm.running_mean.uniform_(-0.3, 0.3)
    module.norm.running_var.uniform_(0.2, 1.5)
    return module


@dataclass(frozen=True)
class Source:
    """What export_encoder wants; the network comes fresh and in training mode, as constructors give it."""

    name: str = "small"
    input_shape: tuple[int, int, int] = (3, 16, 16)
    mean: tuple[float, ...] = (0.5, 0.4, 0.45)
    std: tuple[float, ...] = (0.2, 0.25, 0.22)
    encoder: Callable[[], nn.Module] = small_network


@dataclass(frozen=True)
class Images:
    """Images uint8 [N, C, H, W]."""

    images: np.ndarray

    @classmethod
    def random(cls, count: int, shape: tuple[int, ...], seed: int = 0) -> Images:
        return cls(np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8))


@pytest.fixture(scope="session")
def source():
    return Source()


@pytest.fixture(scope="session")
def images():
    return Images


@pytest.fixture(scope="session")
def network():
    """Makes the network of `source` anew."""
    return small_network


@pytest.fixture(scope="session")
def everything():
    """Makes a network of every operation that can be exported; it takes 4x12x10."""
    return every_operation


@pytest.fixture(scope="session")
def stages():
    """What export_encoder said it was doing while it made `bundle`."""
    return []


@pytest.fixture(scope="session")
def bundle(source, stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "made" / "on demand"
    return export_encoder(source, Images.random(120, source.input_shape), folder, stages.append)
