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
    "softmax": lambda x: x.softmax(1),
}


class Written(nn.Module):
    """A module whose forward is `function`, of its layers and the images."""

    def __init__(self, function, *layers: nn.Module):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


# How one also writes what is supported; images of 4x12x10.
WAYS = {
    "view by size": lambda x, linear: linear(x.view(x.size(0), -1)),
    "view by shape": lambda x, linear: linear(x.view(x.shape[0], 480)),
    "reshape": lambda x, linear: linear(torch.reshape(x, (-1, 480))),
    "numbers": lambda x, linear: linear(((2 * x + 1) / 4 - 0.5 + 1).flatten(1)),
    "itself twice": lambda x, linear: linear((x + x * x).flatten(1)),
    "squeezes": lambda x, linear: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "dim counted from the end": lambda x, linear: torch.cat([x, x.relu()], dim=-3).mean(dim=[-2, -1]).softmax(-1),
    "axis": lambda x, linear: torch.concat([x, x.relu()], axis=1).mean((2, 3)),
    "pool to what divides": lambda x, linear: nn.functional.adaptive_avg_pool2d(x, (3, 5)).mean((2, 3)),
    "pool to what is": lambda x, linear: linear(nn.functional.adaptive_avg_pool2d(x, (12, 10)).flatten(1)),
}


@pytest.mark.parametrize("make", ["network", "everything", *WAYS])
def test_the_graph_computes_what_the_module_does(request, make):
    """The nodes' own weights, by torch's functions: it is they that become TFLite."""
    torch.manual_seed(0)
    module = Written(WAYS[make], nn.Linear(480, 7)) if make in WAYS else request.getfixturevalue(make)()
    module, shape = module.eval(), (3, 16, 16) if make == "network" else (4, 12, 10)
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
            case "add" | "mul" if node.constant is not None:
                y = FUNCTIONS[node.op](*inputs, torch.tensor(node.constant))
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
        self.adaptive = nn.AdaptiveAvgPool2d(3)
        self.last_axis = nn.Linear(3, 2)
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
        "scale: a parameter or buffer that no layer owns; fold it into a convolution",
        "adaptive: AdaptiveAvgPool2d from 2x2 to 3x3; pool to 1x1, or to a size that divides the map's",
        "last_axis: Linear over the last axis of a map; flatten before it, or use a 1x1 Conv2d",
        "flatten: flattens a 3x2 map; pool it to 1x1 first",
    ]


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (nn.Conv2d(4, 5, 3), "_output: the features are a 10x10 map; pool it to 1x1 first"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "1: flattens a 12x12 map; pool it to 1x1 first"),
    ],
)
def test_features_are_one_vector(module, problem):
    if isinstance(module, nn.Conv2d):
        module = nn.Sequential(module)
        problem = problem.replace("_output", "0")
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


def recurrent(x, gru):
    return gru(x.flatten(2))[0][:, -1]


def branching(x):
    return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


def infinite() -> nn.Sequential:
    layer = nn.Conv2d(4, 4, 12)
    layer.weight.data[1, 0, 3] = torch.nan
    return nn.Sequential(layer)


# What newcomers bring: a module for 4x12x12 and what is said about it, the first line of several.
REFUSED = {
    "recurrent": (Written(recurrent, nn.GRU(144, 8, batch_first=True)), "layers.0: GRU is not supported; replace it"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(4, 4, 2)), "0: ConvTranspose2d is not supported; replace it"),
    "group norm": (nn.Sequential(nn.GroupNorm(2, 4)), "0: GroupNorm is not supported; replace it"),
    "five axes": (Written(lambda x, c: c(x[:, :, None]), nn.Conv3d(4, 4, 1)), "layers.0: Conv3d is not supported"),
    "chunks": (Written(lambda x: torch.cat(x.chunk(2, 1), 1)), "chunk: chunk is not supported; replace it"),
    "a size": (Written(lambda x: x / x.size(2)), "truediv: takes a number that depends on the input's size; write"),
    "from a number": (Written(lambda x: 1 - x), "sub: sub of a tensor from a number; write it with + and * of"),
    "no statistics": (
        nn.Sequential(nn.BatchNorm2d(4, track_running_stats=False)),
        "0: batch norm without running statistics; train",
    ),
    "both spread": (Written(lambda x: x[:, :1] + x[:, :, :1]), "add: add of 1x12x12 and 4x1x12; give the first the"),
    "eleven parts": (Written(lambda x: torch.cat([x] * 11, 1)), "cat: cat of 11 tensors, more than tflite-micro's 10"),
    "wide softmax": (Written(lambda x: x.flatten(1).softmax(1)), "softmax: softmax over 576 channels; use at most 256"),
    "softmax of a row": (Written(lambda x: x.softmax(3)), "softmax: softmax with dim=3; give dim=1, the channels"),
    "no numbers": (infinite(), "0: weights that are infinite or no numbers; train it again"),
    "branches": (Written(branching), "torch.fx cannot trace this network (TraceError: symbolically traced variables"),
    "two inputs": (nn.Bilinear(4, 4, 2), "this network takes 2 inputs, input1, input2; give one that takes one"),
    "other channels": (
        nn.Sequential(nn.Conv2d(3, 4, 3)),
        "this network does not take an image of 4x12x12 (RuntimeError: Given groups",
    ),
    "half": (nn.Sequential(nn.Conv2d(4, 4, 3)).half(), "give images of its size, and weights in float32"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_newcomers_bring_is_refused_with_the_reason(what, capfd):
    module, says = REFUSED[what]
    with pytest.raises(UnsupportedError) as refused:
        from_module(module, (4, 12, 12))
    assert says in str(refused.value)
    assert "Traceback" not in capfd.readouterr().err
