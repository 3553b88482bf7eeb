"""Linear layers that follow each other become one, where that changes no number beyond rounding and costs nothing.

Two convolutions, the second right behind the first and nothing else reading the first, are one convolution:

    kernel    K[o, c] = sum over m, u of W2[o, m, u] shift(W1[m, c], s1 d2 u)
    stride s1 s2, padding p1 + s1 p2, bias b2 + sum of W2 b1

Exact everywhere only where the second reads no padding, or where its padding can be moved out to before the first: all
that the first would give there must be zero, which needs a first without bias whose taps all lie off the map, such as
a 1x1. Rows and columns of taps of the second that meet nothing but padding, or hold nothing but zeros, are cut off
first: a padded 3x3 kernel on a 1x1 map is a 1x1 kernel without padding.

Several layers in a row are divided into runs, so that the whole needs the fewest multiply-accumulates of non-zero
weights; no run may need more of them, or more non-zero weights, than its layers did."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from entropi.host.networks import cost, graph

LARGEST_KERNEL = 2**26  # weights, zeros included; one beyond that and beyond its layers' own is not tried

BATCH_NORM_FUSERS = {nn.Linear: fuse_linear_bn_eval} | dict.fromkeys(graph.CONVOLUTIONS, fuse_conv_bn_eval)


@dataclass(frozen=True)
class Merge:
    """Layers that became one, named as the last of them. nonzero_macs, nonzeros: of these layers before, of the one
    after. exact: whether at the border, too."""

    layers: tuple[str, ...]
    nonzero_macs: tuple[int, int]
    nonzeros: tuple[int, int]
    exact: bool = True


@dataclass(frozen=True)
class Refusal:
    """Two layers, the second right behind the first, that stay two, and why."""

    first: str
    second: str
    reason: str


@dataclass(frozen=True)
class Folded:
    """What fold gives. error: how far an approximate network's output lies from the exact one's, as the norm of the
    difference over the norm; 0 where every merge is exact, None where there were no images to measure it on."""

    module: fx.GraphModule
    merges: tuple[Merge, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    error: float | None = 0.0

    def report(self) -> dict[str, Any]:
        """Everything but the network, for JSON."""
        return {
            "merges": [asdict(merge) for merge in self.merges],
            "refusals": [asdict(refusal) for refusal in self.refusals],
            "error": self.error,
        }


class _RefusedError(Exception):
    """Two layers cannot be one; the message says why."""


@dataclass(frozen=True)
class _Layer:
    """A convolution of maps, or a linear layer: a 1x1 convolution. Pairs are (height, width). weight: float64
    (out, in / groups, kh, kw); size: of the map that comes in; positions: of the output, for one image."""

    names: tuple[str, ...]
    weight: torch.Tensor
    bias: torch.Tensor
    size: tuple[int, int]
    positions: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    exact: bool = True
    counts: bool = True  # a batch norm on its own counts no multiply-accumulates

    @property
    def nonzeros(self) -> int:
        return int(self.weight.count_nonzero()) * self.counts

    @property
    def nonzero_macs(self) -> int:
        return self.nonzeros * self.positions

    def outputs(self, axis: int) -> int:
        """Rows (axis 0) or columns (axis 1) of the output."""
        reach = self.dilation[axis] * (self.weight.shape[2 + axis] - 1) + 1
        return (self.size[axis] + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


def fold(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    approximate: torch.Tensor | bool = False,
) -> Folded:
    """The network in evaluation mode with fewer layers: batch norm folded, what does nothing dropped, layers that have
    no weights left replaced by their biases, linear layers that follow each other merged. `module` stays as it is.

    `approximate`: also merge where the result is wrong at the border of the map; images (N, C, H, W), normalised as the
    network takes them, to measure on how wrong, or True to leave that out.
    Raises ValueError where torch.fx cannot follow the network."""
    net = copy.deepcopy(module)
    net = net.eval() if isinstance(net, fx.GraphModule) else graph.trace(net)
    _drop_nothings(net)
    _fold_batch_norms(net)
    graph.with_shapes(net, input_shape)
    _drop_empty(net)
    graph.with_shapes(net, input_shape)
    merges, refusals = _merge(net, inexact=False)
    error = 0.0
    if approximate is not False:
        exact = copy.deepcopy(net)
        graph.with_shapes(net, input_shape)
        more, refusals = _merge(net, inexact=True)
        merges += more
        if more:
            error = None if approximate is True else _error(net, exact, approximate)
    return Folded(net, tuple(merges), tuple(refusals), error)


def summary(module: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """What a network costs for one (C, H, W) image: convolutions and linear layers that run, the depth, which is the
    most of them one behind the other, multiply-accumulates and weights, all of them and those that are not zero."""
    net = module if isinstance(module, fx.GraphModule) else graph.trace(copy.deepcopy(module))
    layers = cost.macs(net, input_shape)
    weights = [net.get_submodule(name).weight for name in dict.fromkeys(layer.name for layer in layers)]
    return {
        "layers": len(layers),
        "depth": graph.longest_path(net),
        "dense_macs": sum(layer.dense for layer in layers),
        "nonzero_macs": sum(layer.nonzero for layer in layers),
        "weights": sum(weight.numel() for weight in weights),
        "nonzeros": sum(int(weight.count_nonzero()) for weight in weights),
    }


def _error(net: nn.Module, exact: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        right = exact(images)
        return float((net(images) - right).norm() / right.norm())


def _drop_nothings(net: fx.GraphModule) -> None:
    for node in list(net.graph.nodes):
        if isinstance(graph.module_of(net, node), graph.NOTHING):
            node.replace_all_uses_with(node.all_input_nodes[0])
    graph.drop_unread(net)


def _runs(net: fx.GraphModule) -> dict[str, int]:
    """How often each module runs."""
    runs: dict[str, int] = {}
    for node in net.graph.nodes:
        if node.op == "call_module":
            runs[node.target] = runs.get(node.target, 0) + 1
    return runs


def _fold_batch_norms(net: fx.GraphModule) -> None:
    """Into the layer before, where nothing else reads that."""
    runs = _runs(net)
    for node in list(net.graph.nodes):
        norm = graph.module_of(net, node)
        if not isinstance(norm, graph.BATCH_NORMS) or norm.running_mean is None:
            continue
        before = node.all_input_nodes[0]
        layer = graph.module_of(net, before)
        fuse = BATCH_NORM_FUSERS.get(type(layer))
        if fuse and len(before.users) == 1 and runs[before.target] == 1:
            net.set_submodule(before.target, fuse(layer, _whole(norm)))
            node.replace_all_uses_with(before)
    graph.drop_unread(net)


def _whole(norm: nn.Module) -> nn.Module:
    """The batch norm with a weight and a bias."""
    norm = copy.deepcopy(norm)
    if norm.weight is None:
        norm.weight = nn.Parameter(torch.ones_like(norm.running_mean))
        norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
    return norm


def _drop_empty(net: fx.GraphModule) -> None:
    """A convolution without weights is its bias. Where it is one part of a sum it goes: without bias so does the sum,
    else a convolution that is the other part takes the bias, or a depthwise 1x1 convolution takes the sum's place."""
    for node in list(net.graph.nodes):
        layer = graph.module_of(net, node)
        if not isinstance(layer, nn.Conv2d) or layer.weight.count_nonzero() or len(node.users) != 1:
            continue
        total = next(iter(node.users))
        parts = total.all_input_nodes
        if not (graph.is_sum(total) and len(parts) == 2 and all(graph.shape(p) == graph.shape(total) for p in parts)):
            continue
        other = parts[parts[0] is node]
        if layer.bias is None or not layer.bias.count_nonzero():
            total.replace_all_uses_with(other)
        elif (conv := _own_conv(net, other)) is not None:
            conv.bias = nn.Parameter(layer.bias + (0 if conv.bias is None else conv.bias), requires_grad=False)
            total.replace_all_uses_with(other)
        else:
            shift = nn.Conv2d(layer.out_channels, layer.out_channels, 1, groups=layer.out_channels)
            shift.weight = nn.Parameter(torch.ones_like(shift.weight, dtype=layer.weight.dtype), requires_grad=False)
            shift.bias = layer.bias
            net.set_submodule(node.target, shift)
            node.args = (other,)
            total.replace_all_uses_with(node)
        graph.drop_unread(net)


def _own_conv(net: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """The convolution that a node runs, if it runs once and one node reads it."""
    conv = graph.module_of(net, node)
    return conv if isinstance(conv, nn.Conv2d) and len(node.users) == 1 and _runs(net)[node.target] == 1 else None


def _merge(net: fx.GraphModule, inexact: bool) -> tuple[list[Merge], list[Refusal]]:
    merges, refusals = [], []
    for chain in _chains(net):
        layers = [_layer(net, node) for node in chain]
        runs, reasons = _divide(layers, inexact)
        start = 0
        for run in runs:
            stop = start + len(run.names)
            if stop - start > 1:
                before = layers[start:stop]
                macs, weights = (sum(getattr(layer, n) for layer in before) for n in ("nonzero_macs", "nonzeros"))
                merges.append(Merge(run.names, (macs, run.nonzero_macs), (weights, run.nonzeros), run.exact))
                _replace(net, chain[start:stop], run)
            if stop < len(layers):
                refusals.append(Refusal(chain[stop - 1].target, chain[stop].target, reasons[stop]))
            start = stop
    graph.drop_unread(net)
    return merges, refusals


def _chains(net: fx.GraphModule) -> list[list[fx.Node]]:
    """Nodes of linear layers that follow each other, each read by the next alone; two or more."""
    runs = _runs(net)
    following: dict[fx.Node, fx.Node] = {}
    for node in net.graph.nodes:
        before = node.all_input_nodes[0] if node.all_input_nodes else node
        if len(before.users) == 1 and _kind(net, before, runs) and _kind(net, before, runs) is _kind(net, node, runs):
            following[before] = node
    chains = []
    for start in [node for node in following if node not in following.values()]:
        chain = [start]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        chains.append(chain)
    return chains


def _kind(net: fx.GraphModule, node: fx.Node, runs: dict[str, int]) -> type | None:
    """What a node can be merged with: Conv2d or Linear; None for nodes that cannot be merged."""
    module = graph.module_of(net, node)
    if module is None or runs[node.target] > 1:
        return None
    if type(module) is nn.Conv2d:
        return nn.Conv2d if module.padding_mode == "zeros" and not isinstance(module.padding, str) else None
    if type(module) is nn.BatchNorm2d:
        return nn.Conv2d if module.running_mean is not None else None
    return nn.Linear if type(module) is nn.Linear else None


def _layer(net: fx.GraphModule, node: fx.Node) -> _Layer:
    """A mergeable node's, cropped."""
    module, names = net.get_submodule(node.target), (node.target,)
    before, after = (graph.shape(n) for n in (node.all_input_nodes[0], node))
    if isinstance(module, nn.Linear):
        return _Layer(
            names, module.weight.detach().double()[:, :, None, None], _bias(module), (1, 1), math.prod(after[:-1])
        )
    positions = math.prod(after[2:])
    if isinstance(module, nn.BatchNorm2d):
        norm = _whole(module)
        scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
        bias = norm.bias.detach().double() - norm.running_mean.double() * scale
        return _Layer(names, scale[:, None, None, None], bias, before[2:], positions, groups=len(scale), counts=False)
    return _cropped(
        _Layer(
            names, module.weight.detach().double(), _bias(module), before[2:], positions,
            module.stride, module.padding, module.dilation, module.groups,
        )
    )  # fmt: skip


def _bias(module: nn.Conv2d | nn.Linear) -> torch.Tensor:
    return (
        module.weight.new_zeros(len(module.weight)).double() if module.bias is None else module.bias.detach().double()
    )


def _cropped(layer: _Layer) -> _Layer:
    """The layer without the outer rows and columns of taps that meet padding alone or hold zeros alone."""
    for axis in (0, 1):
        weight, outputs = layer.weight, layer.outputs(axis)
        size, stride, padding, dilation = (
            getattr(layer, name)[axis] for name in ("size", "stride", "padding", "dilation")
        )
        used = [
            tap
            for tap in _taps(weight, axis)
            if any(0 <= output * stride + tap * dilation - padding < size for output in range(outputs))
        ]
        if not used:
            continue
        weight = weight.narrow(2 + axis, used[0], used[-1] - used[0] + 1)
        shorter = replace(layer, weight=weight, padding=_with(layer.padding, axis, padding - used[0] * dilation))
        if shorter.padding[axis] >= 0 and shorter.outputs(axis) == outputs:
            layer = shorter
    return layer


def _with(pair: tuple[int, int], axis: int, value: int) -> tuple[int, int]:
    return (value, pair[1]) if axis == 0 else (pair[0], value)


def _taps(weight: torch.Tensor, axis: int) -> list[int]:
    """Rows (axis 0) or columns (axis 1) of a kernel that hold any weight but zero."""
    return weight.ne(0).movedim(2 + axis, 0).flatten(1).any(1).nonzero()[:, 0].tolist()


def _divide(layers: Sequence[_Layer], inexact: bool) -> tuple[tuple[_Layer, ...], dict[int, str]]:
    """The runs that a chain is divided into, each one layer; and why layer i and the one before it stay two, by i."""
    count = len(layers)
    reasons: dict[int, str] = {}
    ending: list[list[tuple[int, _Layer]]] = [[] for _ in range(count + 1)]  # runs before layer i, and where they start
    for start, run in enumerate(layers):
        ending[start + 1].append((start, run))
        for index in range(start + 1, count):
            try:
                run = _composed(run, layers[index], inexact)
            except _RefusedError as refused:
                if index not in reasons or start == index - 1:
                    reasons[index] = str(refused)
                break
            reason = _dearer(layers[start : index + 1], run)
            if not reason:
                ending[index + 1].append((start, run))
            if index not in reasons or start == index - 1:
                reasons[index] = reason or "divided otherwise, all layers together cost less"
    best: list[tuple[_Layer, ...]] = [()]
    for options in ending[1:]:
        divisions = ((*best[start], run) for start, run in options)
        best.append(min(divisions, key=lambda runs: (sum(run.nonzero_macs for run in runs), len(runs))))
    return best[-1], reasons


def _dearer(layers: Sequence[_Layer], run: _Layer) -> str:
    """What the one layer needs more of than the several; empty where it needs no more."""
    for name, what in (("nonzero_macs", "multiply-accumulates of"), ("nonzeros", "")):
        before, after = sum(getattr(layer, name) for layer in layers), getattr(run, name)
        if after > before:
            return f"as one layer they need {after:,} {what} non-zero weights instead of {before:,}".replace("  ", " ")
    return ""


def _composed(first: _Layer, second: _Layer, inexact: bool) -> _Layer:
    """Both as one layer, which is wrong at the border only where `inexact` allows that. Raises _RefusedError."""
    reason = _border(first, second)
    if reason and not inexact:
        raise _RefusedError(reason)
    groups = math.gcd(first.groups, second.groups)
    one, two = _in_groups(first, groups), _in_groups(second, groups)
    spread = [first.stride[axis] * second.dilation[axis] for axis in (0, 1)]
    reach = [
        spread[axis] * (two.shape[3 + axis] - 1) + first.dilation[axis] * (one.shape[3 + axis] - 1) + 1
        for axis in (0, 1)
    ]
    weights = len(second.weight) * one.shape[2] * math.prod(reach)
    if weights > max(LARGEST_KERNEL, first.weight.numel() + second.weight.numel()):
        raise _RefusedError(f"as one layer they would have {weights:,} weights")
    kernel = torch.cat(
        [
            F.conv_transpose2d(w2, w1, stride=tuple(spread), dilation=first.dilation)
            for w1, w2 in zip(one, two, strict=True)
        ]
    )
    bias = second.bias + torch.einsum("gomhw,gm->go", two, first.bias.view(groups, -1)).flatten()
    dilation = tuple(
        math.gcd(spread[axis] * (two.shape[3 + axis] > 1), first.dilation[axis] * (one.shape[3 + axis] > 1)) or 1
        for axis in (0, 1)
    )
    return _Layer(
        first.names + second.names,
        kernel[:, :, :: dilation[0], :: dilation[1]],
        bias,
        first.size,
        second.positions,
        tuple(first.stride[axis] * second.stride[axis] for axis in (0, 1)),
        tuple(first.padding[axis] + first.stride[axis] * second.padding[axis] for axis in (0, 1)),
        dilation,
        groups,
        first.exact and second.exact and not reason,
    )


def _border(first: _Layer, second: _Layer) -> str:
    """Why the second's padding cannot be moved out to before the first; empty where it can, or there is none.

    Beyond its map the first would give its bias, and what those of its taps give that lie on the map."""
    out, *inputs = second.weight.shape
    read = second.weight.view(second.groups, out // second.groups, *inputs).ne(0).sum((1, 3, 4)).flatten() > 0
    for axis in (0, 1):
        size, stride, padding = first.size[axis], first.stride[axis], first.padding[axis]
        rows, kernel = second.size[axis], second.weight.shape[2 + axis]
        last = (second.outputs(axis) - 1) * second.stride[axis] + second.dilation[axis] * (kernel - 1)
        before, after = second.padding[axis] > 0, last - second.padding[axis] >= rows
        if not (before or after):
            continue
        if first.bias[read].any():
            return f"{second.names[-1]} pads with zeros where {first.names[-1]} would give its bias"
        reaches = [first.dilation[axis] * tap - padding for tap in _taps(first.weight, axis)]
        if reaches and (before and max(reaches) - stride >= 0 or after and min(reaches) + stride * rows < size):
            return (
                f"{second.names[-1]} pads with zeros where the {'x'.join(map(str, first.weight.shape[2:]))} kernel of "
                f"{first.names[-1]} would still meet the map"
            )
    return ""


def _in_groups(layer: _Layer, groups: int) -> torch.Tensor:
    """The weight (groups, out / groups, in / groups, kh, kw) with fewer groups, which divide the layer's own."""
    out, inputs, *kernel = layer.weight.shape
    parts = layer.groups // groups
    weight = layer.weight.view(groups, parts, out // layer.groups, inputs, *kernel)
    whole = weight.new_zeros(groups, parts, out // layer.groups, parts, inputs, *kernel)
    for part in range(parts):
        whole[:, part, :, part] = weight[:, part]
    return whole.view(groups, out // groups, parts * inputs, *kernel)


def _replace(net: fx.GraphModule, nodes: Sequence[fx.Node], run: _Layer) -> None:
    """Let the last of the nodes compute the run; nothing reads the others then."""
    last = net.get_submodule(nodes[-1].target)
    out, inputs, *kernel = run.weight.shape
    if isinstance(last, nn.Linear):
        module, weight = nn.Linear(inputs, out, device="meta"), run.weight[:, :, 0, 0]
    else:
        shape = (inputs * run.groups, out, tuple(kernel), run.stride, run.padding, run.dilation, run.groups)
        module, weight = nn.Conv2d(*shape, device="meta"), run.weight
    for name, value in (("weight", weight), ("bias", run.bias)):
        value = value.to(last.weight.dtype, memory_format=torch.contiguous_format)
        setattr(module, name, nn.Parameter(value, requires_grad=False))
    net.set_submodule(nodes[-1].target, module)
    nodes[-1].args = nodes[0].args
