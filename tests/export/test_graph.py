"""From a torch module to the graph: what is folded, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from entropi.export import UnsupportedError
from entropi.export.graph import from_module


def test_batch_norm_is_folded(network):
    module = network().eval()
    graph = from_module(module, (3, 16, 16))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.folded.modules())
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(graph.folded(x), module(x), rtol=0, atol=1e-5)


FUNCTIONS = {
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "hard_swish": nn.functional.hardswish,
    "hard_sigmoid": nn.functional.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "concat": lambda *parts: torch.cat(parts, 1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
}


@pytest.mark.parametrize(("make", "shape"), [("network", (3, 16, 16)), ("everything", (4, 12, 10))])
def test_the_graph_computes_what_the_module_does(request, make, shape):
    """The nodes' own weights, by torch's functions: it is they that become TFLite."""
    module = request.getfixturevalue(make)().eval()
    graph = from_module(module, shape)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    values = {graph.input: x}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        match node.op:
            case "conv":
                weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
                y = nn.functional.conv2d(*inputs, weight, bias, node.stride, node.padding, node.dilation, node.groups)
            case "max_pool":
                y = nn.functional.max_pool2d(*inputs, node.kernel, node.stride, node.padding)
            case "average_pool":
                y = nn.functional.avg_pool2d(*inputs, node.kernel, node.stride, node.padding)
            case _:
                y = FUNCTIONS[node.op](*inputs)
        assert y.flatten(1).shape[1] == np.prod(node.shape)
        values[node.name] = y
    with torch.no_grad():
        np.testing.assert_allclose(values[graph.output].flatten(1), module(x), rtol=0, atol=1e-5)


def test_the_module_is_not_changed(network):
    module = network().train()
    before = copy.deepcopy(module.state_dict())
    from_module(module, (3, 16, 16))
    assert all(m.training for m in module.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def problems(module: nn.Module, shape=(4, 12, 12)) -> list[str]:
    with pytest.raises(UnsupportedError) as refused:
        from_module(module, shape)
    first, *lines = str(refused.value).splitlines()
    assert first == "cannot export this network:"
    return [line.strip() for line in lines]


class Unsupported(nn.Module):
    """Every kind of refusal in one network."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.reflecting = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(4, 4, 4, padding="same")
        self.softplus = nn.Softplus()
        self.average = nn.AvgPool2d(2, divisor_override=3)
        self.ceiling = nn.MaxPool2d(2, ceil_mode=True)
        self.adaptive = nn.AdaptiveAvgPool2d(2)
        self.last_axis = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        x = self.same(self.reflecting(self.pool(x)))
        x = self.ceiling(self.average(self.softplus(x)))
        x = torch.add(x, torch.cat([x, x], 2)[:, :, :2], alpha=2) * self.scale
        return torch.flatten(self.last_axis(self.adaptive(x)), 1)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_every_problem_is_named_at_once():
    assert problems(Unsupported()) == [
        "pool: padded MaxPool2d of values that may be negative; put a ReLU before it",
        "reflecting: Conv2d with padding_mode='reflect'; use zero padding",
        "same: Conv2d with padding='same' and an even kernel; give the padding as numbers",
        "softplus: Softplus is not supported; replace it by a supported layer",
        "average: AvgPool2d with ceil_mode, divisor_override or padding that does not count; use the defaults",
        "ceiling: MaxPool2d with ceil_mode or dilation; use ceil_mode=False and dilation=1",
        "cat: cat is not supported; replace it by a supported layer",
        "getitem: getitem is not supported; replace it by a supported layer",
        "add: add is not supported; replace it by a supported layer",
        "scale: scale is not supported; replace it by a supported layer",
        "adaptive: AdaptiveAvgPool2d is not supported; replace it by a supported layer",
        "last_axis: Linear over the last axis of a map; flatten before it, or use a 1x1 Conv2d",
        "flatten: flattens a 2x2 map; pool it to 1x1 first",
    ]


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (nn.Conv2d(4, 5, 3), "_output: the features are a 10x10 map; pool it to 1x1 first"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "_1: flattens a 12x12 map; pool it to 1x1 first"),
    ],
)
def test_features_are_one_vector(module, problem):
    if isinstance(module, nn.Conv2d):
        module = nn.Sequential(module)
        problem = problem.replace("_output", "_0")
    assert problems(module) == [problem]


def test_one_tensor_is_returned():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    assert problems(Pair()) == ["output: returns a tuple; return one tensor of features"]


def test_a_padded_pool_after_relu_is_taken():
    """The zeros of torch's padding cannot win where nothing is negative, through pools, flatten and mean too."""
    layers = (
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d(3, 2, 1),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    graph = from_module(nn.Sequential(*layers), (4, 12, 12))
    assert [node.op for node in graph.nodes] == ["relu", "max_pool", "max_pool", "mean"]
    assert graph.nodes[-1].name == graph.output
