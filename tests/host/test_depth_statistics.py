import numpy as np
import pytest
import torch
from torch import nn

from entropi.host.data import Split
from entropi.host.depth.statistics import recalibrate
from entropi.host.networks.inference import normalise

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 3, 6, 6), np.uint8)


def test_statistics_are_those_of_the_images():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.Conv2d(4, 4, 1),
                        nn.BatchNorm2d(4, momentum=0.3), nn.Flatten())  # fmt: skip
    recalibrate(net, Split(IMAGES, np.zeros(40, np.int64)), batch=20)
    assert not net.training and not net[1].training and [net[i].momentum for i in (1, 4)] == [0.3, 0.3]
    with torch.no_grad():
        halves = [net[0](normalise(torch.from_numpy(half))).movedim(1, 0).flatten(1) for half in np.split(IMAGES, 2)]
        torch.testing.assert_close(net[1].running_mean, sum(half.mean(1) for half in halves) / 2)
        torch.testing.assert_close(net[1].running_var, sum(half.var(1) for half in halves) / 2)
        whole = net[:4](normalise(torch.from_numpy(IMAGES))).movedim(1, 0).flatten(1)
        torch.testing.assert_close(net[4].running_mean, whole.mean(1), rtol=0.05, atol=0.02)  # without dropout


def test_behind_a_layer_without_weights_batch_norm_gives_its_bias():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    net[0].weight.data.zero_()
    net[1].bias.data = torch.tensor([1.0, -2, 3, 0.5])
    images = normalise(torch.from_numpy(IMAGES))
    net[1].running_mean.copy_(net[0].bias.detach() + 0.004)  # as bfloat16 leaves it
    net[1].running_var.zero_()
    with torch.no_grad():
        assert (net.eval()(images).view(40, 4, 16)[0, 0, 0] - 1).abs() > 1
        recalibrate(net, Split(IMAGES, np.zeros(40, np.int64)))
        assert net(images).view(40, 4, 16)[0, :, 0].tolist() == pytest.approx([1, -2, 3, 0.5], abs=1e-3)
