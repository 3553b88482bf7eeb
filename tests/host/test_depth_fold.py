"""Folding: numerically, in float64, against the layers one after the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from entropi.host.networks import archs, graph
from entropi.host.networks.fold import fold, summary

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode, every number drawn, batch norm's statistics included."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.double().eval().state_dict().items():
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn)
    return module


def layers(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def same(module: nn.Module, folded: nn.Module, shape: tuple[int, int, int]) -> None:
    images = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = module(images)
        scale = expected.abs().max().clamp(min=1)
        torch.testing.assert_close(folded(images) / scale, expected / scale, **CLOSE)


@st.composite
def convolutions(draw, inputs: int, padded: bool = True):
    groups = draw(st.sampled_from([g for g in (1, 2, inputs) if inputs % g == 0]))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(2))
    conv = nn.Conv2d(
        inputs,
        groups * draw(st.integers(1, 3)),
        kernel,
        stride=tuple(draw(st.integers(1, 3)) for _ in range(2)),
        padding=tuple(draw(st.integers(0, 2)) if padded else 0 for _ in range(2)),
        dilation=tuple(draw(st.integers(1, 2)) for _ in range(2)),
        groups=groups,
        bias=draw(st.booleans()),
    )
    conv = randomised(conv, draw(st.integers(0, 99)))
    if draw(st.booleans()):  # pruned
        mask = torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) < 0.4
        conv.weight.data *= mask
    return conv


@st.composite
def chains(draw):
    count = draw(st.integers(2, 3))
    convs = [draw(convolutions(4))]
    while len(convs) < count:
        convs.append(draw(convolutions(convs[-1].out_channels, padded=draw(st.booleans()))))
    return nn.Sequential(*convs)


@given(chains(), st.integers(4, 11), st.integers(4, 11))
@settings(max_examples=40, deadline=None)
def test_whatever_is_merged_is_exact_everywhere_and_no_dearer(chain, height, width):
    shape = (4, height, width)
    try:
        chain(torch.zeros(1, *shape, dtype=torch.float64))
    except RuntimeError:  # the map is smaller than a kernel
        return
    folded = fold(chain, shape)
    same(chain, folded.module, shape)
    before, after = summary(chain, shape), summary(folded.module, shape)
    assert after["nonzero_macs"] <= before["nonzero_macs"] and after["nonzeros"] <= before["nonzeros"]
    assert len(folded.refusals) == after["layers"] - 1 == len(chain) - 1 - sum(len(m.layers) - 1 for m in folded.merges)
    assert all(refusal.reason for refusal in folded.refusals) and folded.error == 0


def two(first: dict, second: dict) -> nn.Sequential:
    """Convolutions that narrow, so that one layer is cheaper than two."""
    return randomised(nn.Sequential(nn.Conv2d(2, 8, **first), nn.Conv2d(8, 2, **second)))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"kernel_size": 3, "padding": 1}, {"kernel_size": 1}, (3, 1, 1)),
        ({"kernel_size": 3, "padding": 1, "stride": 2}, {"kernel_size": 2}, (5, 2, 1)),
        ({"kernel_size": 1, "bias": False}, {"kernel_size": 3, "padding": 1}, (3, 1, 1)),
        ({"kernel_size": 1, "bias": False, "stride": 2}, {"kernel_size": 3, "padding": 1}, (3, 2, 2)),
        ({"kernel_size": 1, "bias": False, "padding": 1}, {"kernel_size": 3, "padding": 2}, (3, 1, 1)),
    ],
)
def test_conditions_for_an_exact_merge(first, second, expected):
    pair = two(first, second)
    folded = fold(pair, (2, 9, 9))
    (merged,) = layers(folded.module)
    assert (merged.kernel_size[0], merged.stride[0], merged.dilation[0]) == expected
    assert folded.merges[0].layers == ("0", "1") and folded.merges[0].exact
    same(pair, folded.module, (2, 9, 9))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"kernel_size": 3, "bias": False}, {"kernel_size": 3, "padding": 1}, "the 3x3 kernel of 0 would still meet"),
        ({"kernel_size": 1}, {"kernel_size": 3, "padding": 1}, "1 pads with zeros where 0 would give its bias"),
    ],
)
def test_what_is_wrong_at_the_border_is_refused_unless_approximate(first, second, reason):
    pair = two(first, second)
    folded = fold(pair, (2, 9, 9))
    assert len(layers(folded.module)) == 2 and reason in folded.refusals[0].reason
    images = torch.randn(2, 2, 9, 9, dtype=torch.float64)
    approximate = fold(pair, (2, 9, 9), images)
    assert not approximate.merges[0].exact and len(layers(approximate.module)) == 1
    with torch.no_grad():
        expected, given_ = pair(images), approximate.module(images)
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(given_[inner], expected[inner], **CLOSE)
    error = float((given_ - expected).norm() / expected.norm())
    assert approximate.error == pytest.approx(error) and error > 1e-3


def test_a_merge_that_is_dearer_is_refused_but_not_where_weights_are_zero():
    pair = randomised(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)))
    folded = fold(pair, (4, 9, 9))
    assert len(layers(folded.module)) == 2 and "400 non-zero weights instead of 288" in folded.refusals[0].reason
    for conv in pair:
        conv.weight.data[:, :, 1:] = 0  # a row each: 1x3 and 1x3 give 1x5
        conv.weight.data[:, 1:] = 0
        conv.weight.data[1:] = 0
    folded = fold(pair, (4, 9, 9))
    assert len(layers(folded.module)) == 1 and folded.merges[0].nonzeros == (6, 5)
    same(pair, folded.module, (4, 9, 9))


def test_three_layers_become_one_where_no_two_may():
    """MobileNetV2's block: expanded, a depthwise convolution, narrowed."""
    block = randomised(
        nn.Sequential(
            nn.Conv2d(4, 24, 1, bias=False),
            nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
            nn.Conv2d(24, 4, 1),
        )
    )
    folded = fold(block, (4, 8, 8))
    assert folded.merges[0].layers == ("0", "1", "2") and layers(folded.module)[0].kernel_size == (3, 3)
    same(block, folded.module, (4, 8, 8))


def test_a_padded_kernel_on_a_map_of_one_pixel_is_a_1x1_kernel():
    pair = randomised(nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.Conv2d(4, 2, 3, padding=1)))
    folded = fold(pair, (2, 2, 2))
    assert len(layers(folded.module)) == 1
    same(pair, folded.module, (2, 2, 2))


def test_linear_layers_merge_on_vectors_and_on_the_last_axis():
    net = randomised(nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 5), nn.GELU(), nn.Linear(5, 5)))
    folded = fold(net, (7, 6))
    assert [tuple(layer.weight.shape) for layer in layers(folded.module)] == [(5, 6), (5, 5)]
    same(net, folded.module, (7, 6))


def test_batch_norm_goes_into_the_layer_before_and_else_into_the_one_after():
    net = randomised(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    )
    folded = fold(net, (3, 8, 8))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.module.modules()) and len(layers(folded.module)) == 2
    same(net, folded.module, (3, 8, 8))


class Twice(nn.Module):
    """A layer that runs twice, and one that two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 1, 1)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x):
        y = self.twice(self.twice(x))
        return self.last(y) + self.last(self.norm(y))


def test_a_layer_that_others_need_stays():
    net = randomised(Twice())
    folded = fold(net, (2, 4, 4))
    assert not folded.merges
    same(net, folded.module, (2, 4, 4))


class Branch(nn.Module):
    def __init__(self, bias: bool, projected: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=bias))
        self.shortcut = nn.Conv2d(4, 4, 1) if projected else nn.Identity()

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return torch.relu(self.shortcut(x) + self.body(x))


@pytest.mark.parametrize(
    ("bias", "projected", "left"), [(False, False, ["stem"]), (True, False, ["stem", "body.2"]),
                                    (True, True, ["stem", "shortcut"])],
)  # fmt: skip
def test_a_branch_without_weights_is_its_bias(bias, projected, left):
    net = randomised(Branch(bias, projected))
    net.body[2].weight.data.zero_()
    folded = fold(net, (2, 6, 6))
    names = [name for name, m in folded.module.named_modules() if isinstance(m, nn.Conv2d)]
    assert names == left
    assert all(m.groups == 4 for name, m in folded.module.named_modules() if name == "body.2")
    same(net, folded.module, (2, 6, 6))


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v3_small"])
def test_whole_networks_without_half_their_rectifiers(arch):
    """All that may be merged is, and the output stays."""
    torch.manual_seed(0)
    net = graph.trace(archs.build(arch, 10)).double()
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    graph.edit(net, [graph.removal(node) for node in graph.removable(net)[::2]])
    before = summary(net, (3, 32, 32))
    folded = fold(net, (3, 32, 32))
    after = summary(folded.module, (3, 32, 32))
    same(net, folded.module, (3, 32, 32))
    assert folded.merges and after["layers"] < before["layers"] and after["nonzero_macs"] <= before["nonzero_macs"]
