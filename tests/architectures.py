"""Torch networks of the kinds that people bring, as wide as one likes, with batch norm that has seen images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from entropi.host.networks.resnet8 import ResNet8


def settled(module: nn.Module, shape: tuple[int, int, int], density: float = 1.0, seed: int = 0) -> nn.Module:
    """`module` as training leaves it: batch norm scaled and shifted, its statistics those of 32 images of noise.

    `density` of the weights are kept, layer by layer more or fewer, the first layer whole; then, too, every eighth row
    of a layer with batch norm behind it is empty."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, generator=generator)
    for layer in layers[1:] if density < 1 else ():
        kept = min(1.0, density * uniform(0.3, 3))
        fan_in = layer.weight[0].numel()
        layer.weight.data *= torch.rand(layer.weight.shape, generator=generator) < max(kept, 1 / fan_in)
        if layer.bias is None and len(layer.weight) > 8:
            layer.weight.data[::8] = 0
    layers[-1].weight.data *= 4  # as sure as a trained network is, where a softmax follows
    for norm in (m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))):
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
        norm.momentum = None  # the mean over all batches: of the one below
    with torch.no_grad():
        module.train()(torch.randn(32, *shape, generator=generator))
    return module.eval()


def mobilenet_v1(width: float = 1.0, classes: int = 1000) -> nn.Sequential:
    """Depthwise-separable convolutions; MLPerf Tiny's visual wake words is width 0.25 at 96x96 with two classes."""

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU6(),
        ]  # fmt: skip

    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    channels = int(32 * width)
    layers = conv(3, channels, 3, 2)
    for outputs, stride in plan:
        outputs = int(outputs * width)
        layers += conv(channels, channels, 3, stride, channels) + conv(channels, outputs, 1)
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes), nn.Softmax(1))


def vgg(*widths: int, classes: int = 10) -> nn.Sequential:
    """VGG with batch norm, 0 for a pool; a linear layer reads its last map of 2x2."""
    layers, channels = [], 3
    for width in widths:
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * channels, 32), nn.ReLU(), nn.Linear(32, classes))


def autoencoder(inputs: int = 640, hidden: int = 128) -> nn.Sequential:
    """MLPerf Tiny's for anomaly detection: linear layers alone, through a bottleneck of 8."""
    layers = [nn.Flatten()]
    widths = [inputs, *[hidden] * 4, 8, *[hidden] * 4]
    for width, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(width, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, inputs))


class Branches(nn.Module):
    """Inception's way: branches of 1x1, dilated and strided-then-pooled convolutions, concatenated; a softmax at the
    end. `channels` of each branch."""

    def __init__(self, channels: int = 8, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 5, 2, 2, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.point = nn.Conv2d(channels, channels, 1)
        self.dilated = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, bias=False)
        self.average = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(channels, channels, (1, 3), padding=(0, 1)))
        self.greatest = nn.MaxPool2d(3, 1, 1)
        self.norm = nn.BatchNorm2d(4 * channels)
        self.grouped = nn.Conv2d(4 * channels, 2 * channels, 3, 2, 1, groups=2, bias=False)
        self.last_norm = nn.BatchNorm2d(2 * channels)
        self.head = nn.Linear(2 * channels, classes)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.point(x), self.dilated(x), self.average(x), self.greatest(x)], 1)
        x = F.relu(self.last_norm(self.grouped(F.relu(self.norm(x)))))
        return F.softmax(self.head(x.mean((2, 3))), dim=1)


class Gated(nn.Module):
    """Odd in every way: one channel, a map that is not square, strides that differ, a skip with another scale, squeeze
    and excite by a hard sigmoid, a product of two maps, a difference."""

    def __init__(self, channels: int = 12):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, (3, 5), (1, 2), (1, 2), bias=False), nn.BatchNorm2d(channels))
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, (5, 1), padding=(2, 0), groups=channels, bias=False),
            nn.BatchNorm2d(channels), nn.Hardswish(), nn.Conv2d(channels, channels, 1),
        )  # fmt: skip
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1), nn.Hardsigmoid()
        )
        self.down = nn.Conv2d(channels, 2 * channels, 2, 2)
        self.left, self.right = nn.Conv2d(2 * channels, 16, 1), nn.Conv2d(2 * channels, 16, 3, padding=1)

    def forward(self, x):
        x = F.relu6(self.stem(x))
        y = self.body(x)
        x = F.relu6(y * self.squeeze(y) + 0.25 * x)
        x = F.silu(self.down(x))
        left, right = torch.tanh(self.left(x)), torch.sigmoid(self.right(x))
        return (left * right - left).mean((2, 3))


Network = tuple[Callable[[], nn.Module], tuple[int, int, int]]

# Narrow, for small images: the factory and the input's shape.
NARROW: dict[str, Network] = {
    "mobilenet_v1": (lambda: mobilenet_v1(0.25, 10), (3, 32, 32)),
    "mobilenet_v2": (lambda: models.mobilenet_v2(width_mult=0.1, num_classes=10), (3, 32, 32)),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(width_mult=0.25, num_classes=10), (3, 32, 32)),
    "mobilenet_v3_large": (lambda: models.mobilenet_v3_large(width_mult=0.15, num_classes=10), (3, 32, 32)),
    "vgg": (lambda: vgg(8, 0, 16, 0, 24, 24, 0, 32, 32), (3, 16, 16)),
    "autoencoder": (autoencoder, (640, 1, 1)),
    "resnet8": (lambda: ResNet8(10), (3, 8, 8)),
    "branches": (Branches, (3, 17, 17)),
    "gated": (Gated, (1, 10, 15)),
}
