"""What each method removes: EGP, NEPENTHE and EASIER by the entropy of signs, LaCoOT by a distance.

EGP       Liao et al., "Can Unstructured Pruning Reduce the Depth in Deep Neural Networks?" (ICCV Workshops 2023)
NEPENTHE  Liao et al., "NEPENTHE: Entropy-Based Pruning as a Neural Network Depth's Reducer" (2024)
EASIER    Quetu et al., "The Simpler The Better: An Entropy-Based Importance Metric To Reduce Neural Networks'
          Depth" (ECML PKDD 2024)
LaCoOT    Quetu et al., "LaCoOT: Layer Collapse through Optimal Transport" (ICCV 2025)"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import fx, nn

from entropi.host.depth.signs import Mean, Signs, Zero
from entropi.host.networks import graph
from entropi.host.networks.graph import Block, Edit
from entropi.host.training import pruning

FLOOR = 0.01  # the share of its weights that a layer keeps where there is no way round it

Kind = Literal["weights", "rectifiers", "blocks"]


@dataclass(frozen=True)
class Method:
    """A method and its parameters, by the papers' names.

    removes: what a round takes away; zero, mean: how signs become a layer's entropy; zeta: the share of the candidates'
    weights pruned in a round; rounds: how many at most, None for no limit; lambda_: weight of the distances in the
    loss; projections: directions among which the largest distance is looked for.
    Raises ValueError for values out of range."""

    name: str
    removes: Kind
    zero: Zero = "off"
    mean: Mean = "all"
    zeta: float = 0.5
    rounds: int | None = None
    lambda_: float = 5.0
    projections: int = 50

    def __post_init__(self) -> None:
        for name, choices in (("zero", get_args(Zero)), ("mean", get_args(Mean))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(choices)}")
        if not 0 < self.zeta <= 1:
            raise ValueError(f"zeta is {self.zeta}; it is a share of the weights, above 0 and at most 1")
        if not (math.isfinite(self.lambda_) and self.lambda_ >= 0):
            raise ValueError(f"lambda is {self.lambda_}; it must be at least 0")
        for name in ("rounds", "projections"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")

    def changed(self, **values: Any) -> Method:
        """The method with those of `values` that are not None. Raises ValueError for values out of range, and for a
        parameter that the method does not have."""
        given = {name: value for name, value in values.items() if value is not None}
        if strange := given.keys() - {"rounds", *PARAMETERS[self.removes]}:
            raise ValueError(f"{self.name} has no parameter {min(strange).rstrip('_')}; leave it out")
        return replace(self, **given)

    def settings(self) -> dict[str, Any]:
        """The parameters that the method has."""
        return {name: getattr(self, name) for name in ("rounds", *PARAMETERS[self.removes])}


PARAMETERS: dict[Kind, tuple[str, ...]] = {
    "weights": ("zero", "mean", "zeta"),
    "rectifiers": ("zero", "mean"),
    "blocks": ("lambda_", "projections"),
}
METHODS = {
    method.name: method
    for method in (
        Method("egp", "weights", zero="off", mean="switching", rounds=9),
        Method("nepenthe", "weights", zero="drop"),
        Method("easier", "rectifiers", zero="on"),
        Method("lacoot", "blocks"),
    )
}
LAMBDAS = {"resnet18": 5.0, "swin_t": 0.1, "mobilenet_v2": 9.0}  # LaCoOT's for CIFAR-10; 5 for any other network


def method(name: str, arch: str) -> Method:
    """The method of that name with its defaults for a network. Raises ValueError listing the choices."""
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not known; choose from {', '.join(METHODS)}")
    found = METHODS[name]
    return replace(found, lambda_=LAMBDAS.get(arch, found.lambda_)) if found.removes == "blocks" else found


def least_entropy(net: fx.GraphModule, entropies: Mapping[str, float]) -> list[Edit]:
    """EASIER's round: the rectifier of the lowest entropy becomes the identity, and so does every other of entropy 0.
    Of equals the first in the order of execution goes. Nothing where no rectifier is left."""
    nodes = graph.removable(net)
    lowest = min(nodes, key=lambda node: entropies[node.name], default=None)
    return _removals([node for node in nodes if node is lowest or entropies[node.name] == 0])


def without_effect(net: fx.GraphModule, signs: Mapping[str, Signs]) -> list[Edit]:
    """The edits that put the identity in the place of the rectifiers that changed no value when `signs` was taken."""
    return _removals([node for node in graph.removable(net) if not signs[node.name].changed.any()])


def _removals(nodes: list[fx.Node]) -> list[Edit]:
    """The last first, so that what an edit names is still there where rectifiers follow each other."""
    return [graph.removal(node) for node in reversed(nodes)]


def least_distance(blocks: Sequence[Block], distances: Mapping[str, float], done: int) -> list[Edit]:
    """LaCoOT's round: the edit that leaves out the block of the smallest distance, `done` of them being left out; of
    equals the first in the order of execution. Nothing where no block is left."""
    ranked = sorted(blocks, key=lambda block: distances[block.name])
    if done == len(ranked):
        return []
    gone = {block.end: block.start for block in ranked[:done]}
    start = ranked[done].start
    while start in gone:
        start = gone[start]
    return [Edit(ranked[done].end, start)]


def budget_masks(net: fx.GraphModule, entropies: Mapping[str, float], zeta: float) -> dict[nn.Parameter, torch.Tensor]:
    """The round of EGP and NEPENTHE: which weights the layers keep, as boolean masks; nothing where no layer can give.

    Candidates are the layers that feed a rectifier of an entropy H above 0 and have weights left. A layer's importance
    is H times the mean magnitude of these, its relevance the sum of all importances over its own. The share `zeta` of
    all candidates' weights is divided by the softmax of the relevances; a layer that would lose more than it has gives
    all of that, and the others share the rest anew. A layer gives its smallest weights.

    No layer is emptied where the output would then no longer depend on the input, other layers being empty as they are:
    it keeps the share FLOOR of its weights."""
    heard = _heard(net, entropies)
    weights = {name: net.get_submodule(name).weight for name in heard}
    left = {name: pruning.nonzeros({name: weight}) for name, weight in weights.items()}
    weights = {name: weight for name, weight in weights.items() if left[name]}
    importance = {
        name: heard[name] * float(weight.detach().abs().sum(dtype=torch.float64)) / left[name]
        for name, weight in weights.items()
    }
    taken = _divide(net, importance, left, {name: weight.numel() for name, weight in weights.items()}, zeta)
    masks = {}
    for name, count in taken.items():
        if count:
            weight = weights[name]
            keep = (left[name] - count) / weight.numel()
            masks[weight] = pruning.magnitude_masks({name: weight}, keep)[name]
    return masks


def _heard(net: fx.GraphModule, entropies: Mapping[str, float]) -> dict[str, float]:
    """The candidates by module name, each with the entropy of the rectifier that it feeds, the highest of several."""
    heard: dict[str, float] = {}
    for node in graph.rectifiers(net):
        for name in graph.feeders(net, node):
            heard[name] = max(heard.get(name, 0.0), entropies[node.name])
    return {name: entropy for name, entropy in heard.items() if entropy > 0}


def _divide(
    net: fx.GraphModule, importance: dict[str, float], left: dict[str, int], sizes: dict[str, int], zeta: float
) -> dict[str, int]:
    """How many weights each candidate gives."""
    empty = {
        node.target
        for node in net.graph.nodes
        if isinstance(module := graph.module_of(net, node), graph.LAYERS) and not module.weight.count_nonzero()
    }
    taken: dict[str, int] = {}
    sharing = dict(sorted(importance.items(), key=lambda item: item[1]))
    budget = int(zeta * sum(left[name] for name in sharing))
    while sharing:
        asked = shares(sharing, budget)
        for name, count in asked.items():
            spare = max(0, left[name] - max(1, round(FLOOR * sizes[name])))
            if count < spare:
                continue
            way_round = graph.carries(net, empty | {name})
            most = left[name] if way_round else spare
            if count >= most:  # it gives that, the others share the rest
                taken[name] = most
                budget -= most
                del sharing[name]
                empty |= {name} if way_round else set()
        if len(asked) == len(sharing):
            return taken | asked
    return taken


def shares(importance: Mapping[str, float], budget: int) -> dict[str, int]:
    """`budget` weights divided by the softmax of the relevances, sum(importance) / importance.

    Whole numbers that sum to `budget`: rounded down, the largest remainders up."""
    values = np.array(list(importance.values()))
    relevance = values.sum() / values
    exact = np.exp(relevance - relevance.max())
    exact *= budget / exact.sum()
    whole = np.floor(exact).astype(int)
    for index in np.argsort(whole - exact, kind="stable")[: budget - whole.sum()]:
        whole[index] += 1
    return dict(zip(importance, whole.tolist(), strict=True))
