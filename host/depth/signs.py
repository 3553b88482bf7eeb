"""The one estimator behind EGP, NEPENTHE and EASIER: how often every unit of a rectifier is on.

A unit is an output channel; what is counted, over all images and positions, is the sign of its pre-activation z. The
counts are integers, so they do not depend on the batch size. A unit that is always on is linear, one that is always off
is constant; its entropy is 0 in both cases.

That is exact for ReLU. ReLU6 also bends at 6, and Hardswish, SiLU and GELU bend around 0 instead of at it, so for them
no entropy of signs says how nearly linear a unit is. `nonlinearity` does, for every activation f alike: the share of
the variance of f(z) that the best straight line in z leaves, 1 - correlation(z, f(z))^2, over the same values. It is 0
where f was linear on all that the unit saw, or constant, and at most 1."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from scipy.special import entr
from torch import fx

from entropi.host.data import Split
from entropi.host.networks.graph import channel_axis, rectifiers
from entropi.host.networks.inference import BATCH, output_batches

Zero = Literal["off", "on", "drop"]
Mean = Literal["all", "switching"]

PIECE = 1 << 18  # values that are summed at a time: few enough for a processor's cache
ROUNDING = 1e-6  # a variance below this share of the mean square is that of rounding


@dataclass(frozen=True)
class Signs:
    """Of the units of one rectifier, each (units,): int64 counts of z > 0, z < 0, z == 0 and f(z) != z; float64
    nonlinearity."""

    positive: np.ndarray
    negative: np.ndarray
    zero: np.ndarray
    changed: np.ndarray
    nonlinearity: np.ndarray

    def entropies(self, zero: Zero) -> np.ndarray:
        """Entropy of on and off in bits, float64 (units,), z == 0 being off, on or left out ("drop")."""
        if zero not in get_args(Zero):
            raise ValueError(f"zero is {zero!r}; choose from {', '.join(get_args(Zero))}")
        on = self.positive + (self.zero if zero == "on" else 0)
        off = self.negative + (self.zero if zero == "off" else 0)
        total = np.maximum(on + off, 1)
        return (entr(on / total) + entr(off / total)) / math.log(2)

    def entropy(self, zero: Zero, mean: Mean) -> float:
        """The mean in bits over all units, or over those that switch, whose entropy is not 0; 0 where none does."""
        if mean not in get_args(Mean):
            raise ValueError(f"mean is {mean!r}; choose from {', '.join(get_args(Mean))}")
        values = self.entropies(zero)
        if mean == "switching":
            values = values[values > 0]
        return float(values.mean()) if values.size else 0.0


def measure(net: fx.GraphModule, split: Split, batch: int = BATCH) -> dict[str, Signs]:
    """The Signs of every rectifier, by node name, in evaluation mode over all images of `split`.

    Raises ValueError where a pre-activation is not a number."""
    counter = _Counter(net)
    for _ in output_batches(counter, split, batch):
        pass
    return {name: sums.signs(name) for name, sums in counter.sums.items()}


class _Counter(torch.nn.Module):
    """Runs the network node by node and looks at what goes into every rectifier and what comes out."""

    def __init__(self, net: fx.GraphModule) -> None:
        super().__init__()
        self.net = net
        self.axes = {node.name: channel_axis(net, node) for node in rectifiers(net)}
        self.sums: dict[str, _Sums] = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        counter = self

        class Watching(fx.Interpreter):
            def run_node(self, node: fx.Node) -> object:
                result = super().run_node(node)
                if node.name in counter.axes:
                    z = self.env[node.all_input_nodes[0]]
                    counter.sums.setdefault(node.name, _Sums()).add(z, result, counter.axes[node.name])
                return result

        return Watching(self.net).run(images)


class _Sums:
    """Of every unit of one rectifier: counts of signs, and sums of z, f(z), their squares and their product."""

    def __init__(self) -> None:
        self.count = 0
        self.tallies: torch.Tensor | int = 0
        self.moments: torch.Tensor | int = 0

    def add(self, z: torch.Tensor, f: torch.Tensor, axis: int) -> None:
        """Tensors (N, units) with any more axes; the units lie along `axis`."""
        images = max(1, PIECE // z[0].numel())
        for piece in zip(z.split(images), f.split(images), strict=True):
            z, f = (value.movedim(axis, 0).flatten(1).float() for value in piece)
            self.count += z.shape[1]
            counted = [signs.sum(1, dtype=torch.int32) for signs in (z > 0, z < 0, z == 0, f != z)]
            self.tallies += torch.stack(counted).long()
            z, f = z.double(), f.double()
            self.moments += torch.stack([value.sum(1) for value in (z, f, z * z, f * f, z * f)])

    def signs(self, name: str) -> Signs:
        positive, negative, zero, changed = self.tallies.numpy(force=True)
        if (positive + negative + zero != self.count).any():
            raise ValueError(f"{name} gets numbers that are NaN; the network diverged, so lower the learning rate")
        return Signs(positive, negative, zero, changed, _unexplained(self.moments.numpy(force=True), self.count))


def _unexplained(moments: np.ndarray, count: int) -> np.ndarray:
    """1 - the squared correlation of z and f, (units,), from their sums (5, units) over `count` values."""
    z, f, zz, ff, zf = moments / count
    of_z, of_f, of_both = zz - z * z, ff - f * f, zf - z * f
    varies = (of_z > ROUNDING * zz) & (of_f > ROUNDING * ff)
    explained = np.divide(of_both**2, of_z * of_f, out=np.ones_like(z), where=varies)
    return np.clip(1 - explained, 0, 1)
