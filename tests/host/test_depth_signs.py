import math

import numpy as np
import pytest
import torch
from torch import nn

from entropi.host.data import Split
from entropi.host.depth import signs
from entropi.host.depth.signs import Signs
from entropi.host.networks import archs, graph

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 3, 8, 8), np.uint8)
SPLIT = Split(IMAGES, np.zeros(23, np.int64))


def entropy(share: float) -> float:
    return -share * math.log2(share) - (1 - share) * math.log2(1 - share) if 0 < share < 1 else 0.0


def units(positive, negative, zero) -> Signs:
    counts = [np.array(values) for values in (positive, negative, zero)]
    return Signs(*counts, counts[1], np.zeros(len(positive)))


def test_what_zeros_count_as_and_what_the_mean_is_over():
    found = units([1, 0, 4, 2], [1, 4, 0, 0], [2, 0, 0, 2])
    expected = {"off": [1 / 4, 0, 1, 1 / 2], "on": [3 / 4, 0, 1, 1], "drop": [1 / 2, 0, 1, 1]}
    for zero, shares in expected.items():
        np.testing.assert_allclose(found.entropies(zero), [entropy(share) for share in shares], rtol=1e-12)
    assert found.entropy("off", "all") == pytest.approx((entropy(1 / 4) + 1) / 4)
    assert found.entropy("off", "switching") == pytest.approx((entropy(1 / 4) + 1) / 2)
    assert units([0, 4], [4, 0], [0, 0]).entropy("off", "switching") == 0
    assert units([0], [0], [4]).entropy("drop", "all") == 0
    with pytest.raises(ValueError, match="choose from off, on, drop"):
        found.entropies("maybe")
    with pytest.raises(ValueError, match="choose from all, switching"):
        found.entropy("on", "most")


class Known(nn.Module):
    """Of every pixel p in -1..1: p - 2, p + 2, p and 0, through a rectifier; then a Linear's units on the last axis."""

    def __init__(self, rectifier: nn.Module) -> None:
        super().__init__()
        self.conv, self.rectifier, self.last = nn.Conv2d(3, 4, 1), rectifier, nn.ReLU(inplace=True)
        self.fc, self.head = nn.Linear(4, 5), nn.Linear(5, 2)
        with torch.no_grad():
            self.conv.weight.zero_()[:3, 0] = 1
            self.conv.bias.copy_(torch.tensor([-2.0, 2, 0, 0]))

    def forward(self, x):
        x = self.rectifier(self.conv(x)).permute(0, 2, 3, 1)
        return self.head(self.last(self.fc(x))).mean((1, 2))


def test_counts_are_exact_for_units_that_are_known():
    found = signs.measure(graph.trace(Known(nn.ReLU(inplace=True))), SPLIT)
    known = found["rectifier"]
    count = IMAGES[:, 0].size
    dark, zero = int((IMAGES[:, 0] < 127.5).sum()), 0
    assert known.positive.tolist() == [0, count, count - dark, 0]
    assert known.negative.tolist() == known.changed.tolist() == [count, 0, dark, 0]
    assert known.zero.tolist() == [0, zero, 0, count]
    assert known.nonlinearity[[0, 1, 3]].tolist() == [0, 0, 0] and 0.01 < known.nonlinearity[2] < 0.5
    assert len(found["last"].positive) == 5 and found["last"].positive.dtype == np.int64


@pytest.mark.parametrize("arch", ["resnet8", "swin_t", "mobilenet_v3_small"])
def test_counts_do_not_depend_on_the_batch_size(arch):
    torch.manual_seed(0)
    net = graph.trace(archs.build(arch, 4))
    split = Split(np.repeat(IMAGES[:7], 4, 2).repeat(4, 3), np.zeros(7, np.int64))
    whole, single = signs.measure(net, split), signs.measure(net, split, batch=3)
    positions = 0
    for name, found in whole.items():
        other = single[name]
        for field in ("positive", "negative", "zero"):
            differ = np.abs(getattr(found, field) - getattr(other, field)).sum()
            positions += getattr(found, field).sum()
            assert differ <= 1e-4 * getattr(found, field).sum() + 2, f"{name} {field}"  # a kernel may round otherwise
        np.testing.assert_allclose(found.nonlinearity, other.nonlinearity, rtol=1e-3, atol=1e-5)
    assert positions > 10_000


@pytest.mark.parametrize("rectifier", [nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU])
def test_nonlinearity_is_what_the_best_line_leaves(rectifier):
    """Against numpy's least squares on the same values."""
    net = graph.trace(Known(rectifier()))
    net.conv.bias.data = torch.tensor([-2.0, 6, 0, 0])
    found = signs.measure(net, SPLIT)["rectifier"]
    pixels = torch.from_numpy(IMAGES[:, 0].reshape(-1) / 127.5 - 1)
    for unit, bias in enumerate((-2, 6, 0)):
        z = pixels + bias
        f = rectifier()(z).numpy()
        if f.std() == 0:
            assert found.nonlinearity[unit] == 0
            continue
        line = np.polyval(np.polyfit(z.numpy(), f, 1), z.numpy())
        share = ((f - line) ** 2).sum() / ((f - f.mean()) ** 2).sum()
        assert found.nonlinearity[unit] == pytest.approx(share, abs=1e-5)
    assert found.entropies("off")[1] == 0  # always on, and yet
    assert rectifier is not nn.ReLU6 or found.changed[1] > 0 and found.nonlinearity[1] > 0.05


def test_not_a_number_is_refused():
    net = graph.trace(Known(nn.ReLU()))
    net.conv.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="rectifier gets numbers that are NaN"):
        signs.measure(net, SPLIT)


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.relu(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_rectifier_whose_channels_moved_is_refused():
    with pytest.raises(ValueError, match="axes change places in permute, between relu"):
        signs.measure(graph.trace(Turned()), SPLIT)
