"""From a torch module to the small graph that every exporter reads: batch norm folded, shapes known."""

from __future__ import annotations

import copy
import operator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp


class UnsupportedError(ValueError):
    """The network holds operations that cannot be exported; the message lists every one with reason and remedy."""


@dataclass(frozen=True)
class Node:
    """One operation: `conv`, `relu`, `max_pool`, `add` or `mean`. Shapes are [C, H, W] without the batch; weights are
    float32 [out, in, kh, kw]. padding holds (height, width), the same on both sides."""

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    weight: np.ndarray | None = None
    bias: np.ndarray | None = None


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


class _Reader:
    """Walks a traced module and collects nodes and problems."""

    def __init__(self, traced: fx.GraphModule, graph: Graph):
        self.traced = traced
        self.graph = graph
        self.alias: dict[str, str] = {}
        self.nonnegative: set[str] = set()
        self.problems: list[str] = []

    def read(self) -> None:
        for node in self.traced.graph.nodes:
            if node.op == "placeholder":
                self.alias[node.name] = node.name
                self.graph.input = node.name
            elif node.op == "output":
                self._output(node.args[0])
            elif node.op == "call_module":
                self._module(node, self.traced.get_submodule(node.target))
            else:
                self._function(node)

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
        self.problems.append(f"{node.name}: {what}; {remedy}")

    def _add(self, node: fx.Node, op: str, **fields) -> None:
        inputs = tuple(self.alias.get(n.name, n.name) for n in node.all_input_nodes)
        self.graph.nodes.append(Node(node.name, op, inputs, self._shape(node), **fields))
        self.alias[node.name] = node.name
        if op == "relu" or op in ("max_pool", "mean") and inputs[0] in self.nonnegative:
            self.nonnegative.add(node.name)

    def _same(self, node: fx.Node) -> None:
        source = node.all_input_nodes[0].name
        self.alias[node.name] = self.alias.get(source, source)

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        match module:
            case nn.Conv2d():
                self._conv(node, module)
            case nn.ReLU():
                self._add(node, "relu")
            case nn.MaxPool2d():
                self._max_pool(node, module)
            case nn.AdaptiveAvgPool2d() if _pair(module.output_size) == (1, 1):
                self._global_mean(node)
            case nn.Identity() | nn.Dropout() | nn.Flatten():
                self._flatten_or_same(node)
            case _:
                self._problem(node, f"{type(module).__name__} is not supported", "replace it by a supported layer")

    def _conv(self, node: fx.Node, module: nn.Conv2d) -> None:
        if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
            self._problem(
                node,
                f"Conv2d with groups={module.groups}, dilation={module.dilation}, padding_mode={module.padding_mode!r}",
                "use groups=1, dilation=1 and zero padding",
            )
            return
        weight = module.weight.detach().numpy()
        bias = np.zeros(len(weight), np.float32) if module.bias is None else module.bias.detach().numpy()
        padding = (0, 0) if module.padding == "valid" else module.padding
        if isinstance(padding, str):
            self._problem(node, f"Conv2d with padding={padding!r}", "give the padding as numbers")
            return
        self._add(
            node, "conv", kernel=module.kernel_size, stride=module.stride, padding=padding, weight=weight, bias=bias
        )

    def _max_pool(self, node: fx.Node, module: nn.MaxPool2d) -> None:
        padding = _pair(module.padding)
        source = node.all_input_nodes[0].name
        if module.ceil_mode or _pair(module.dilation) != (1, 1):
            self._problem(node, "MaxPool2d with ceil_mode or dilation", "use ceil_mode=False and dilation=1")
        elif padding != (0, 0) and self.alias.get(source, source) not in self.nonnegative:
            self._problem(node, "padded MaxPool2d of values that may be negative", "put a ReLU before it")
        else:
            self._add(node, "max_pool", kernel=_pair(module.kernel_size), stride=_pair(module.stride), padding=padding)

    def _global_mean(self, node: fx.Node) -> None:
        if self._shape(node.all_input_nodes[0])[1:] == (1, 1):
            self._same(node)
        else:
            self._add(node, "mean")

    def _flatten_or_same(self, node: fx.Node) -> None:
        before = self._shape(node.all_input_nodes[0])
        if len(before) == 3 and before != self._shape(node) and before[1:] != (1, 1):
            self._problem(node, f"flattens a {before[1]}x{before[2]} map", "pool it to 1x1 first")
        else:
            self._same(node)

    def _function(self, node: fx.Node) -> None:
        target = node.target
        if target in (operator.add, operator.iadd, torch.add) and len(node.all_input_nodes) == 2 and not node.kwargs:
            self._add(node, "add")
        elif target in (torch.relu, nn.functional.relu) or target == "relu":
            self._add(node, "relu")
        elif target is torch.flatten or target == "flatten":
            self._flatten_or_same(node)
        else:
            name = getattr(target, "__name__", str(target))
            self._problem(node, f"{name} is not supported", "replace it by a supported layer")


def from_module(module: nn.Module, input_shape: tuple[int, int, int]) -> Graph:
    """Trace `module`, fold its batch norms into the convolutions before them (torch.fx) and list what is left.

    `input_shape` is [C, H, W]. The module itself is not changed. Raises UnsupportedError naming every operation that
    has no equivalent on the device.
    """
    module = copy.deepcopy(module).eval()
    traced = fuse(fx.symbolic_trace(module))
    ShapeProp(traced).propagate(torch.zeros(1, *input_shape))
    graph = Graph("", tuple(input_shape), "", traced)
    reader = _Reader(traced, graph)
    reader.read()
    if reader.problems:
        raise UnsupportedError("cannot export this network:\n  " + "\n  ".join(reader.problems))
    return graph
