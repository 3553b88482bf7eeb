"""A network as a torch.fx graph: its rectifiers, its residual blocks, and the edits that make it shallower.

Nodes go by their names in the graph that `trace` makes, so a network's name and a list of edits give the same graph
again. A module that runs twice, such as the ReLU of torchvision's residual blocks, is two nodes."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.ops import Permute, StochasticDepth

from entropi.host.networks import archs

RECTIFIERS = (
    nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU,
    F.relu, F.relu6, F.hardswish, F.silu, F.gelu, torch.relu, "relu",
)  # fmt: skip
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CONVOLUTIONS = LAYERS[:3]
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, StochasticDepth)  # outside training
SUMS = (operator.add, torch.add, "add")
PRODUCTS = (operator.mul, torch.mul, "mul")
SIZES = (getattr, "size", "dim")
PERMUTATIONS = (Permute, torch.permute, torch.transpose, "permute", "transpose")
LEAVES = (ShiftedWindowAttention, StochasticDepth)  # what they compute depends on whether they are trained
OUT_OF_PLACE = {
    operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub,
    torch.relu_: torch.relu, "relu_": "relu", "add_": "add", "mul_": "mul", "sub_": "sub",
}  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """Everything that reads `node` reads `by`, a node before it, instead; what nothing reads then goes."""

    node: str
    by: str


@dataclass(frozen=True)
class Block:
    """A part that a shortcut leads past, its output shaped as its input: from behind node `start` to node `end`."""

    name: str
    start: str
    end: str


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, LEAVES) or super().is_leaf_module(module, name)


def trace(model: nn.Module) -> fx.GraphModule:
    """The network as a graph in evaluation mode, its modules those of `model`, nothing computed in place and no
    nn.Identity run.

    Raises ValueError where torch.fx cannot follow forward(), and where forward() itself asks whether it trains."""
    try:
        training, evaluating = (_Tracer().trace(model.train(mode)) for mode in (True, False))
    except Exception as error:  # whatever the network's own code raises
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"torch.fx cannot trace {type(model).__name__} ({said}); its forward() may not branch on values"
        ) from error
    if str(training) != str(evaluating):
        raise ValueError(
            f"{type(model).__name__}'s forward() depends on self.training; use modules such as nn.Dropout, which know"
        )
    for module in model.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    for node in training.nodes:
        node.target = OUT_OF_PLACE.get(node.target, node.target)
        if node.op != "call_module" and node.target in RECTIFIERS:
            node.args = (node.all_input_nodes[0],)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name not in ("input", "inplace")}
    net = fx.GraphModule(model, training).eval()
    for node in list(net.graph.nodes):
        if isinstance(module_of(net, node), nn.Identity):
            node.replace_all_uses_with(node.all_input_nodes[0])
    drop_unread(net)
    return net


def build(name: str, classes: int, edits: Iterable[Edit] = ()) -> fx.GraphModule:
    """The network of a name (archs.build), traced and edited, without numbers. Raises ValueError as these do."""
    with torch.device("meta"):
        model = archs.build(name, classes)
    net = trace(model)
    edit(net, edits)
    return net


def edit(net: fx.GraphModule, edits: Iterable[Edit]) -> None:
    """Apply the edits in place, one after the other. Raises ValueError for a node that is not there."""
    for change in edits:
        node, by = (find(net, name) for name in (change.node, change.by))
        node.replace_all_uses_with(by)
        drop_unread(net)


def find(net: fx.GraphModule, name: str) -> fx.Node:
    """The node of that name. Raises ValueError where there is none."""
    for node in net.graph.nodes:
        if node.name == name:
            return node
    raise ValueError(
        f"this network has no node {name!r}; it was reduced with other code, or another version of torch or torchvision"
    )


def drop_unread(net: fx.GraphModule) -> None:
    """Drop all nodes that nothing reads, and the modules that no node needs."""
    for node in reversed(list(net.graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            net.graph.erase_node(node)
    net.recompile()
    net.delete_all_unused_submodules()


def module_of(net: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node runs, if it runs one."""
    return net.get_submodule(node.target) if node.op == "call_module" else None


def _is(net: fx.GraphModule, node: fx.Node, kinds: tuple) -> bool:
    """Whether a node runs one of these modules, functions or methods."""
    if module := module_of(net, node):
        return isinstance(module, tuple(kind for kind in kinds if isinstance(kind, type)))
    return node.op in ("call_function", "call_method") and node.target in kinds


def is_sum(node: fx.Node) -> bool:
    """Whether a node adds tensors."""
    return node.op in ("call_function", "call_method") and node.target in SUMS and "alpha" not in node.kwargs


def rectifiers(net: fx.GraphModule) -> list[fx.Node]:
    """Every run of a rectifier, in the order of execution."""
    return [node for node in net.graph.nodes if _is(net, node, RECTIFIERS)]


def removable(net: fx.GraphModule) -> list[fx.Node]:
    """The rectifiers but those right before a padded max pool, which the device pads with zeros: what is pooled may not
    be negative there."""
    return [node for node in rectifiers(net) if not any(_pads_maximum(net, user) for user in node.users)]


def _pads_maximum(net: fx.GraphModule, node: fx.Node) -> bool:
    module = module_of(net, node)
    return isinstance(module, nn.MaxPool2d) and module.padding not in (0, (0, 0))


def removal(node: fx.Node) -> Edit:
    """The edit that puts the identity in a rectifier's place."""
    return Edit(node.name, node.all_input_nodes[0].name)


def feeders(net: fx.GraphModule, rectifier: fx.Node) -> list[str]:
    """The convolutions and linear layers whose output reaches the rectifier through nothing but batch norm, dropout and
    sums."""
    found: list[str] = []
    queue = list(rectifier.all_input_nodes)
    while queue:
        node = queue.pop(0)
        if _is(net, node, LAYERS):
            found += [node.target] * (node.target not in found)
        elif _is(net, node, (*BATCH_NORMS, *NOTHING, *SUMS)):
            queue += node.all_input_nodes
    return found


def channel_axis(net: fx.GraphModule, rectifier: fx.Node) -> int:
    """Which axis of the rectifier's input holds the units: the last behind a Linear or LayerNorm, else the second.

    Raises ValueError where axes change places between that layer and the rectifier."""
    node = rectifier
    while node.op != "placeholder":
        node = node.all_input_nodes[0]
        if _is(net, node, (nn.Linear, nn.LayerNorm)):
            return -1
        if _is(net, node, (*CONVOLUTIONS, *BATCH_NORMS)):
            return 1
        if _is(net, node, PERMUTATIONS):
            raise ValueError(
                f"axes change places in {node.name}, between {rectifier.name} and the layer before it; put the "
                "rectifier right behind the layer"
            )
    return 1


def carries(net: fx.GraphModule, emptied: set[str]) -> bool:
    """Whether the output still depends on the input when the layers of these names have no weights left.

    A sum carries when one of its parts does, a product when all its parts do."""
    alive: dict[fx.Node, bool] = {}
    for node in net.graph.nodes:
        parts = [alive[part] for part in node.all_input_nodes if part.op != "get_attr"]
        if node.op == "placeholder":
            alive[node] = True
        elif node.op == "call_module" and node.target in emptied or _is(net, node, SIZES):
            alive[node] = False
        else:
            alive[node] = bool(parts) and (all(parts) if _is(net, node, PRODUCTS) else any(parts))
        if node.op == "output":
            return alive[node]
    return False


def with_shapes(net: fx.GraphModule, input_shape: tuple[int, ...]) -> None:
    """Note at every node the shape that it gives for one (C, H, W) image: `shape` reads it."""
    parameter = next(net.parameters())
    image = torch.zeros(1, *input_shape, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad():
        ShapeProp(net.eval()).propagate(image)


def shape(node: fx.Node) -> tuple[int, ...] | None:
    """What with_shapes noted, the batch included; None where the node gives no tensor."""
    return getattr(node.meta.get("tensor_meta"), "shape", None)


def blocks(net: fx.GraphModule, input_shape: tuple[int, int, int]) -> list[Block]:
    """The residual blocks that can be left out, in the order of execution.

    A block ends with a sum of which one part, the shortcut, comes before the other and is shaped as the sum, or with
    the rectifier right behind that sum. Sums that follow each other within one module, as the two of a transformer's
    block do, end one block."""
    with_shapes(net, input_shape)
    found: list[Block] = []
    owner = ""
    for node in net.graph.nodes:
        if not (is_sum(node) and (start := _shortcut(node))):
            continue
        users = list(node.users)
        end = users[0] if len(users) == 1 and _is(net, users[0], RECTIFIERS) else node
        before, owner = owner, _owner(node)
        if found and owner and owner == before and found[-1].end == start.name:
            start = find(net, found.pop().start)
        found.append(Block(owner or end.name, start.name, end.name))
    return found


def _shortcut(node: fx.Node) -> fx.Node | None:
    """The part of a sum that the other part is made from, if it is shaped as the sum."""
    if len(node.all_input_nodes) != 2:
        return None
    for part, other in (node.all_input_nodes, reversed(node.all_input_nodes)):
        if shape(part) == shape(node) and part in _ancestors(other):
            return part
    return None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    queue = [node]
    while queue:
        queue += (new := set(queue.pop().all_input_nodes) - found)
        found |= new
    return found


def _owner(node: fx.Node) -> str:
    """The name of the module whose forward() computes a node; empty for the network itself."""
    stack = list(node.meta.get("nn_module_stack") or {})
    return stack[-1] if stack else ""


def longest_path(net: fx.GraphModule) -> int:
    """The depth: the most convolutions and linear layers, one behind the other, between input and output."""
    depth: dict[fx.Node, int] = {}
    for node in net.graph.nodes:
        depth[node] = max((depth[part] for part in node.all_input_nodes), default=0) + _is(net, node, LAYERS)
    return max(depth.values())
