"""From a torch module to the small graph that every exporter reads: batch norm folded, shapes known."""

from __future__ import annotations

import copy
import math
import operator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.ops import stochastic_depth


class UnsupportedError(ValueError):
    """The network holds operations that cannot be exported; the message lists every one with reason and remedy."""


@dataclass(frozen=True)
class Node:
    """One operation: `conv`, `max_pool`, `average_pool`, `add`, `sub`, `mul`, `concat` and `softmax` (of channels),
    `mean` (over height and width) or one of ACTIVATIONS. Shapes are [C, H, W] or [F], without the batch; weights are
    float32 [out, in / groups, kh, kw]. padding holds (height, width), the same on both sides. `constant` is the second
    operand of an `add` or `mul` that has one input."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None
    constant: float | None = None


ACTIVATIONS = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hard_swish",
    nn.Hardsigmoid: "hard_sigmoid",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    torch.relu: "relu",
    torch.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    nn.functional.relu: "relu",
    nn.functional.relu6: "relu6",
    nn.functional.hardswish: "hard_swish",
    nn.functional.hardsigmoid: "hard_sigmoid",
    nn.functional.silu: "silu",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
NONNEGATIVE = ("relu", "relu6", "hard_sigmoid", "sigmoid", "softmax")
BINARY = {
    operator.add: "add",
    operator.iadd: "add",
    torch.add: "add",
    "add": "add",
    operator.sub: "sub",
    torch.sub: "sub",
    "sub": "sub",
    operator.mul: "mul",
    operator.imul: "mul",
    torch.mul: "mul",
    "mul": "mul",
}
AS_MODULES = {
    nn.functional.max_pool2d: nn.MaxPool2d,
    nn.functional.avg_pool2d: nn.AvgPool2d,
    nn.functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
DIVISIONS = (operator.truediv, torch.div, "div")
SOFTMAXES = (torch.softmax, nn.functional.softmax, "softmax")
MAX_SOFTMAX = 256  # channels; the device holds their exponentials
MAX_CONCAT = 10  # tensors, in tflite-micro
RESHAPES = (torch.reshape, "reshape", "view")
SQUEEZES = (torch.squeeze, "squeeze")
IDENTITIES = (nn.functional.dropout, nn.functional.dropout2d, stochastic_depth)  # outside training
KEEPS_SIGN = ("max_pool", "average_pool", "mean", "concat")  # non-negative where all its inputs are


@dataclass
class Graph:
    """Nodes in execution order. `folded` is the same network as a torch module, for ONNX."""

    input: str
    input_shape: tuple[int, ...]
    output: str
    folded: nn.Module
    nodes: list[Node] = field(default_factory=list)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _axes(node: fx.Node) -> tuple[int, ...]:
    """What a function is given as dim or axis, counted from 0; nothing where it is given none."""
    axes = node.kwargs.get("dim", node.kwargs.get("axis", node.args[1] if len(node.args) > 1 else ()))
    rank = len(_operands(node)[0].meta["tensor_meta"].shape)
    return tuple(axis % rank for axis in ((axes,) if isinstance(axes, int) else axes or ()))


def _operands(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, one that is given twice twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _is_tensor(value) -> bool:
    """Whether an argument is a node that gives one tensor of [N, ...]."""
    return isinstance(value, fx.Node) and hasattr(value.meta.get("tensor_meta"), "shape")


def _bias(module: nn.Conv2d | nn.Linear) -> np.ndarray:
    return np.zeros(len(module.weight), np.float32) if module.bias is None else module.bias.detach().numpy()


class _Reader:
    """Walks a traced module and collects nodes and problems."""

    def __init__(self, traced: fx.GraphModule, graph: Graph):
        self.traced = traced
        self.graph = graph
        self.alias: dict[str, str] = {}
        self.nonnegative: set[str] = set()
        self.maps: dict[str, tuple[int, ...]] = {}  # shapes of what is flattened before a Linear
        self.problems: list[str] = []

    def read(self) -> None:
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.alias[node.name] = node.name
                self.graph.input = node.name
            elif node.op == "output":
                self._output(node.args[0])
            elif node.op == "get_attr":
                self._problem(node, "a parameter or buffer that no layer owns", "fold it into a convolution")
            elif all(map(_is_tensor, [node, *_operands(node)])):
                self._operation(node)
            else:
                self._not_of_tensors(node)

    def _output(self, value) -> None:
        if not isinstance(value, fx.Node):
            self.problems.append(f"output: returns a {type(value).__name__}; return one tensor of features")
            return
        shape = self._shape(value)
        if len(shape) == 3 and shape[1:] != (1, 1):
            self._problem(value, f"the features are a {shape[1]}x{shape[2]} map", "pool it to 1x1 first")
        self.graph.output = self.alias.get(value.name, value.name)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(node.meta["tensor_meta"].shape[1:])

    def _problem(self, node: fx.Node, what: str, remedy: str) -> None:
        name = node.target if node.op == "call_module" else node.name
        self.problems.append(f"{name}: {what}; {remedy}")

    def _add(self, node: fx.Node, op: str, **fields) -> None:
        if not all(np.isfinite(fields[part]).all() for part in ("weight", "bias") if part in fields):
            self._problem(node, "weights that are infinite or no numbers", "train it again, more slowly")
        inputs = tuple(self.alias.get(n.name, n.name) for n in _operands(node))
        self.graph.nodes.append(Node(node.name, op, inputs, self._shape(node), **fields))
        self.alias[node.name] = node.name
        if op in NONNEGATIVE or op in KEEPS_SIGN and self.nonnegative.issuperset(inputs):
            self.nonnegative.add(node.name)

    def _same(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0].name
        self.alias[node.name] = self.alias.get(source, source)

    def _operation(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._module(node, self.traced.get_submodule(node.target))
        else:
            self._function(node)

    def _not_of_tensors(self, node: fx.Node) -> None:
        """Sizes may only say how to flatten; of several tensors no layer is known."""
        target = self.traced.get_submodule(node.target) if node.op == "call_module" else node.target
        several = [n for n in (node, *_operands(node)) if "tensor_meta" in n.meta and not _is_tensor(n)]
        if target in RESHAPES and _is_tensor(node):
            self._function(node)
        elif node in several:
            self._unknown(node, target)
        elif _is_tensor(node) and not several:
            self._problem(node, "takes a number that depends on the input's size", "write the number itself")

    def _unknown(self, node: fx.Node, target) -> None:
        name = type(target).__name__ if isinstance(target, nn.Module) else getattr(target, "__name__", str(target))
        self._problem(node, f"{name} is not supported", "replace it by a supported layer")

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        match module:
            case nn.Conv2d():
                self._conv(node, module)
            case nn.Linear():
                self._linear(node, module)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                self._batch_norm(node, module)
            case nn.MaxPool2d():
                self._max_pool(node, module)
            case nn.AvgPool2d():
                self._average_pool(node, module)
            case nn.AdaptiveAvgPool2d():
                self._adaptive_pool(node)
            case nn.Softmax():
                self._softmax(node, module.dim)
            case nn.Identity() | nn.Dropout() | nn.Dropout2d() | nn.Flatten():
                self._flatten_or_same(node)
            case _ if type(module) in ACTIVATIONS:
                self._add(node, ACTIVATIONS[type(module)])
            case _:
                self._unknown(node, module)

    def _conv(self, node: fx.Node, module: nn.Conv2d) -> None:
        if module.padding_mode != "zeros":
            self._problem(node, f"Conv2d with padding_mode={module.padding_mode!r}", "use zero padding")
            return
        weight = module.weight.detach().numpy()
        padding = (0, 0) if module.padding == "valid" else module.padding
        if isinstance(padding, str):
            reach = [d * (k - 1) for k, d in zip(module.kernel_size, module.dilation, strict=True)]
            if any(r % 2 for r in reach):
                self._problem(node, "Conv2d with padding='same' and an even kernel", "give the padding as numbers")
                return
            padding = tuple(r // 2 for r in reach)
        self._add(
            node, "conv", kernel=module.kernel_size, stride=module.stride, padding=padding, dilation=module.dilation,
            groups=module.groups, weight=weight, bias=_bias(module),
        )  # fmt: skip

    def _linear(self, node: fx.Node, module: nn.Linear) -> None:
        if len(self._shape(node.all_input_nodes[0])) != 1:
            self._problem(node, "Linear over the last axis of a map", "flatten before it, or use a 1x1 Conv2d")
            return
        source = self.alias.get(node.all_input_nodes[0].name, node.all_input_nodes[0].name)
        channels, height, width = self.maps.get(source, (module.in_features, 1, 1))
        weight = module.weight.detach().numpy().reshape(-1, channels, height, width)
        self._add(node, "conv", kernel=(height, width), weight=weight, bias=_bias(module))

    def _batch_norm(self, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        if len(self._shape(node)) == 2:
            self._problem(node, "BatchNorm1d of a sequence", "use BatchNorm2d of a map of height 1")
            return
        if module.running_mean is None:
            self._problem(node, "batch norm without running statistics", "train it with track_running_stats=True")
            return
        scale = (module.running_var + module.eps).rsqrt()
        scale = scale if module.weight is None else scale * module.weight
        shift = -module.running_mean * scale if module.bias is None else module.bias - module.running_mean * scale
        weight, bias = (value.detach().numpy() for value in (scale[:, None, None, None], shift))
        self._add(node, "conv", groups=module.num_features, weight=weight, bias=bias)

    def _max_pool(self, node: fx.Node, module: nn.MaxPool2d) -> None:
        padding = _pair(module.padding)
        source = node.all_input_nodes[0].name
        if module.ceil_mode or _pair(module.dilation) != (1, 1):
            self._problem(node, "MaxPool2d with ceil_mode or dilation", "use ceil_mode=False and dilation=1")
        elif padding != (0, 0) and self.alias.get(source, source) not in self.nonnegative:
            self._problem(node, "padded MaxPool2d of values that may be negative", "put a ReLU before it")
        else:
            self._add(node, "max_pool", kernel=_pair(module.kernel_size), stride=_pair(module.stride), padding=padding)

    def _average_pool(self, node: fx.Node, module: nn.AvgPool2d) -> None:
        padding = _pair(module.padding)
        if module.ceil_mode or module.divisor_override or padding != (0, 0) and not module.count_include_pad:
            what = "AvgPool2d with ceil_mode, divisor_override or padding that does not count"
            self._problem(node, what, "use the defaults")
        else:
            stride = _pair(module.stride)
            self._add(node, "average_pool", kernel=_pair(module.kernel_size), stride=stride, padding=padding)

    def _global_mean(self, node: fx.Node) -> None:
        if self._shape(node.all_input_nodes[0])[1:] == (1, 1):
            self._same(node)
        else:
            self._add(node, "mean")

    def _of_two(self, node: fx.Node, op: str) -> None:
        """The second is spread along axes of size 1; a sum's or a product's two may change places."""
        if any(n.op == "get_attr" for n in _operands(node)):
            return  # refused already
        (first, second), whole = map(self._shape, _operands(node)), self._shape(node)
        if len(first) != len(second) or first != whole and (second != whole or op == "sub"):
            sizes = " and ".join("x".join(map(str, size)) for size in (first, second))
            self._problem(node, f"{op} of {sizes}", "give the first the shape of the result, the second 1 to spread")
        else:
            self._add(node, op)

    def _with_number(self, node: fx.Node, first, second) -> None:
        """A tensor and a number, in either order where that is the same."""
        op, number = BINARY.get(node.target, "div"), second if isinstance(first, fx.Node) else first
        if not isinstance(number, (int, float)):
            self._unknown(node, node.target)
        elif op in ("add", "mul"):
            self._add(node, op, constant=float(number))
        elif number is first:
            self._problem(node, f"{op} of a tensor from a number", "write it with + and * of the tensor")
        elif op == "sub":
            self._add(node, "add", constant=-float(number))
        else:
            self._add(node, "mul", constant=1 / number)

    def _adaptive_pool(self, node: fx.Node) -> None:
        """To 1x1 a mean; to what divides the map a pool; to the map's own size nothing."""
        before, after = self._shape(node.all_input_nodes[0])[1:], self._shape(node)[1:]
        kernel = tuple(n // m for n, m in zip(before, after, strict=True))
        if after == (1, 1):
            self._global_mean(node)
        elif any(n % m for n, m in zip(before, after, strict=True)):
            sizes = " to ".join("x".join(map(str, size)) for size in (before, after))
            self._problem(node, f"AdaptiveAvgPool2d from {sizes}", "pool to 1x1, or to a size that divides the map's")
        elif kernel == (1, 1):
            self._same(node)
        else:
            self._add(node, "average_pool", kernel=kernel, stride=kernel)

    def _concat(self, node: fx.Node) -> None:
        parts = len(_operands(node))
        if parts > MAX_CONCAT:
            what = f"cat of {parts} tensors, more than tflite-micro's {MAX_CONCAT}"
            self._problem(node, what, "concatenate in several steps")
        else:
            self._add(node, "concat")

    def _softmax(self, node: fx.Node, axis: int | None) -> None:
        shape = self._shape(node)
        if axis is None or axis % (len(shape) + 1) != 1:
            self._problem(node, f"softmax with dim={axis}", "give dim=1, the channels")
        elif shape[0] > MAX_SOFTMAX:
            self._problem(node, f"softmax over {shape[0]} channels", f"use at most {MAX_SOFTMAX}, or end before it")
        else:
            self._add(node, "softmax")

    def _flatten_or_same(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0]
        before = self._shape(source)
        if len(before) == 3 and before != self._shape(node) and before[1:] != (1, 1):
            self.maps[self.alias.get(source.name, source.name)] = before
            if any(not self._is_linear(user) for user in node.users):
                self._problem(node, f"flattens a {before[1]}x{before[2]} map", "pool it to 1x1 first")
        self._same(node)

    def _is_linear(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self.traced.get_submodule(node.target), nn.Linear)

    def _function(self, node: fx.Node) -> None:
        target, extra = node.target, set(node.kwargs) - {"inplace"}
        if target in BINARY and len(_operands(node)) == 2 and not extra:
            self._of_two(node, BINARY[target])
        elif (target in BINARY or target in DIVISIONS) and len(node.args) == 2 and not extra:
            self._with_number(node, *node.args)
        elif target in ACTIVATIONS and not extra:
            self._add(node, ACTIVATIONS[target])
        elif target in AS_MODULES:
            self._module(node, AS_MODULES[target](*node.args[1:], **node.kwargs))
        elif target in IDENTITIES:
            self._same(node)
        elif target is torch.flatten or target == "flatten" or target in RESHAPES and len(self._shape(node)) == 1:
            self._flatten_or_same(node)
        elif target in SOFTMAXES:
            self._softmax(node, node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None))
        elif target in SQUEEZES and self._shape(node)[:1] == (math.prod(self._shape(node.args[0])),):
            self._same(node)
        elif target in (torch.mean, "mean") and sorted(_axes(node)) == [2, 3]:
            self._global_mean(node)
        elif target in (torch.cat, torch.concat) and _axes(node) == (1,):
            self._concat(node)
        else:
            self._unknown(node, target)


def from_module(module: nn.Module, input_shape: tuple[int, int, int]) -> Graph:
    """Trace `module`, fold its batch norms into the convolutions before them (torch.fx) and list what is left.

    `input_shape` is [C, H, W]. The module itself is not changed. Raises UnsupportedError naming every operation that
    has no equivalent on the device.
    """
    traced = _traced(module, input_shape)
    graph = Graph("", tuple(input_shape), "", traced)
    reader = _Reader(traced, graph)
    reader.read()
    if reader.problems:
        raise UnsupportedError("cannot export this network:\n  " + "\n  ".join(reader.problems))
    return graph


def _traced(module: nn.Module, input_shape: tuple[int, int, int]) -> fx.GraphModule:
    """`module` as operations of known shapes, batch norm folded."""
    try:
        module = copy.deepcopy(module).eval()
        symbolic = fx.symbolic_trace(module)
    except Exception as error:  # the network's own code runs
        raise UnsupportedError(
            f"torch.fx cannot trace this network ({_first_line(error)}); its forward may not branch on values, nor be "
            "TorchScript"
        ) from error
    inputs = [node.name for node in symbolic.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise UnsupportedError(f"this network takes {len(inputs)} inputs, {', '.join(inputs)}; give one that takes one")
    image = torch.zeros(1, *input_shape)
    try:
        with torch.no_grad():
            module(image)
    except Exception as error:
        size = "x".join(map(str, input_shape))
        raise UnsupportedError(
            f"this network does not take an image of {size} ({_first_line(error)}); give images of its size, and "
            "weights in float32"
        ) from error
    traced = fuse(symbolic)
    ShapeProp(traced).propagate(image)
    return traced


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
