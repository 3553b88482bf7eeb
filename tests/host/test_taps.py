import contextlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from entropi.host.networks import archs
from entropi.host.training.taps import trimmed

SMALL = st.integers(1, 5)


@st.composite
def convolutions(draw):
    """(a Conv2d that takes images of that size, the size), anything that torch accepts."""
    pairs = {name: draw(st.tuples(values, values)) for name, values in
             (("kernel_size", SMALL), ("stride", st.integers(1, 3)), ("padding", st.integers(0, 4)),
              ("dilation", st.integers(1, 2)))}  # fmt: skip
    needed = [
        max(1, dilation * (kernel - 1) + 1 - 2 * padding)
        for kernel, padding, dilation in zip(pairs["kernel_size"], pairs["padding"], pairs["dilation"], strict=True)
    ]
    size = tuple(least + draw(st.integers(0, 4)) for least in needed)
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    return nn.Conv2d(4, 8, groups=groups, bias=draw(st.booleans()), dtype=torch.float64, **pairs), size


def run(model, x, cotangent=None):
    """The output, then the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *model.parameters()], cotangent)]


@settings(deadline=None, max_examples=150)
@given(convolutions(), st.booleans(), st.integers(0, 2**31))
def test_same_outputs_and_gradients(convolution, channels_last, seed):
    conv, size = convolution
    model = nn.Sequential(conv)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    x = torch.randn(3, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    cotangent = torch.randn_like(model(x))
    expected = run(model, x, cotangent)
    with trimmed(model, (4, *size)):
        got = run(model, x, cotangent)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert "forward" not in vars(conv)
    assert got[2].stride() == conv.weight.stride()  # else the optimiser would copy it
    products = run(model, torch.ones_like(x), torch.ones_like(cotangent))[2]  # how many a tap takes part in
    assert not got[2][products == 0].any()


@pytest.mark.parametrize(
    ("name", "changed", "macs", "trimmed_macs"),
    [
        ("resnet18", ["layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2", "layer4.0.conv1", "layer4.0.conv2",
                      "layer4.1.conv1", "layer4.1.conv2"], 37_016_576, 26_137_600),
        ("resnet18-cifar", [], 555_422_720, 555_422_720),
    ],
)  # fmt: skip
def test_layers_of_resnet18_at_32x32(name, changed, macs, trimmed_macs):
    model = archs.build(name, 10).eval()
    counts, images = [], torch.zeros(1, 3, 32, 32)
    for context in (contextlib.nullcontext(), trimmed(model, (3, 32, 32))):
        with context, torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(images)
            names = [name for name, module in model.named_modules() if "forward" in vars(module)]
        counts.append(counter.get_total_flops() // 2)
    assert names == changed and counts == [macs, trimmed_macs]


def test_everything_is_restored_after_an_exception():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Dropout())
    model[1].eval()
    with pytest.raises(KeyboardInterrupt), trimmed(model, (1, 1, 1)):
        assert "forward" in vars(model[0])
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="channels"), trimmed(model, (2, 1, 1)):
        pass
    for module in model.modules():
        assert "forward" not in vars(module) and not module._forward_pre_hooks
    assert [m.training for m in model] == [True, False, True]
    assert not model[1].num_batches_tracked


class TwoSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)[..., :1, :1] + self.conv(x[..., :1, :1])


class OwnConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


@pytest.mark.parametrize(
    "model",
    [
        TwoSizes(),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), OwnConv(1, 1, 3, padding=1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 1, 3, padding="same")),
    ],
    ids=["two sizes", "subclass", "padding by name"],
)
def test_what_is_left_alone(model):
    x = torch.randn(2, 1, 4, 4)
    expected = run(model, x, torch.ones(2, 1, 1, 1))
    with trimmed(model, (1, 4, 4)):
        assert not any("forward" in vars(module) for module in model.modules())
        assert all(torch.equal(a, b) for a, b in zip(run(model, x, torch.ones(2, 1, 1, 1)), expected, strict=True))
