import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from entropi.host.depth import lacoot, methods
from entropi.host.networks import archs, graph
from entropi.host.networks.graph import Block, Edit


@given(st.lists(st.floats(1e-6, 10), min_size=1, max_size=20), st.integers(0, 10**6))
def test_shares_are_whole_sum_to_the_budget_and_follow_the_softmax(values, budget):
    importance = {str(index): value for index, value in enumerate(values)}
    found = methods.shares(importance, budget)
    assert sum(found.values()) == budget and min(found.values()) >= 0
    relevance = [sum(values) / value for value in values]
    top = max(relevance)
    weights = [math.exp(r - top) for r in relevance]
    for count, weight in zip(found.values(), weights, strict=True):
        assert abs(count - budget * weight / sum(weights)) < 1 + 1e-6 * budget


class Three(nn.Module):
    """A stem, a branch with a shortcut past it, and a last convolution that there is no way round."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.fc = nn.Conv2d(8, 16, 3), nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.branch(x) + x)
        return self.fc(torch.relu(self.last(x)).mean((2, 3)))


def three() -> tuple:
    torch.manual_seed(0)
    net = graph.trace(Three())
    return net, dict(zip(("stem", "branch", "last"), (node.name for node in graph.rectifiers(net)), strict=True))


def left(net) -> dict[str, int]:
    return {name: int(net.get_submodule(name).weight.count_nonzero()) for name in ("stem", "branch", "last")}


def prune(net, entropies, zeta) -> dict[str, int]:
    for weight, mask in methods.budget_masks(net, entropies, zeta).items():
        weight.data.masked_fill_(~mask, 0)
    return left(net)


def test_a_round_by_hand():
    """H times the mean magnitude, relevance, softmax, budget, and the smallest weights go."""
    net, names = three()
    entropies = {names["stem"]: 0.5, names["branch"]: 0.4, names["last"]: 0.3}
    before = left(net)
    magnitudes = {name: net.get_submodule(name).weight.detach().abs() for name in before}
    importance = {name: entropies[names[name]] * float(magnitudes[name].mean()) for name in before}
    total = sum(importance.values())
    exponents = {name: math.exp(total / value) for name, value in importance.items()}
    budget = int(0.1 * sum(before.values()))
    expected = {n: budget * e / sum(exponents.values()) for n, e in exponents.items()}
    assert all(expected[name] < before[name] for name in before)
    after = prune(net, entropies, 0.1)
    assert sum(before.values()) - sum(after.values()) == budget
    for name, wanted in expected.items():
        weight = net.get_submodule(name).weight.detach()
        assert before[name] - after[name] == pytest.approx(wanted, abs=1)
        assert magnitudes[name][weight == 0].max() <= magnitudes[name][weight != 0].min()


def test_the_layer_of_least_importance_is_emptied_and_the_others_share_the_rest():
    net, names = three()
    before = left(net)
    after = prune(net, {names["stem"]: 0.9, names["branch"]: 0.01, names["last"]: 0.8}, 0.5)
    assert after["branch"] == 0
    assert sum(before.values()) - sum(after.values()) == int(0.5 * sum(before.values()))


def test_no_layer_without_a_way_round_is_emptied():
    net, names = three()
    before = left(net)
    entropies = {names["stem"]: 0.9, names["branch"]: 0.9, names["last"]: 1e-3}
    after = prune(net, entropies, 0.7)
    floor = {name: round(methods.FLOOR * before[name]) for name in before}
    assert after["last"] == floor["last"] > 0
    for _ in range(20):
        after = prune(net, entropies, 0.9)
    assert after == {"stem": floor["stem"], "branch": 0, "last": floor["last"]}
    assert methods.budget_masks(net, entropies, 0.9) == {} or after == prune(net, entropies, 0.9)


def test_only_layers_of_an_entropy_above_zero_are_candidates():
    net, names = three()
    before = left(net)
    after = prune(net, {names["stem"]: 0, names["branch"]: 0.5, names["last"]: 0}, 0.5)
    assert (after["stem"], after["last"]) == (before["stem"], before["last"])
    assert after["branch"] == before["branch"] - int(0.5 * before["branch"])
    assert methods.budget_masks(net, dict.fromkeys(names.values(), 0.0), 0.5) == {}


def test_egp_does_not_collapse_mobilenet_v2():
    """Its last convolution has the most inputs, so the smallest weights: EGP empties it in round 1."""
    torch.manual_seed(0)
    net = graph.trace(archs.build("mobilenet_v2", 10))
    entropies = {node.name: 0.5 for node in graph.rectifiers(net)}
    entropies["features_18_2"] = 0.1
    for _ in range(9):
        for weight, mask in methods.budget_masks(net, entropies, 0.5).items():
            weight.data.masked_fill_(~mask, 0)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    empty = {name for name, layer in layers.items() if not layer.weight.count_nonzero()}
    assert "features.18.0" not in empty and graph.carries(net, empty)


def test_the_rectifier_of_lowest_entropy_goes_and_those_of_none():
    net, names = three()
    stem, branch, last = names.values()
    assert methods.least_entropy(net, {stem: 0.5, branch: 0.2, last: 0.2}) == [Edit(branch, "add")]
    edits = methods.least_entropy(net, {stem: 0.0, branch: 0.2, last: 0.0})
    assert edits == [Edit(last, "last"), Edit(stem, "stem")]
    graph.edit(net, edits)
    assert methods.least_entropy(net, {branch: 0.2}) == [Edit(branch, "add")]
    graph.edit(net, [Edit(branch, "add")])
    assert methods.least_entropy(net, {}) == []


def test_rectifiers_that_follow_each_other_can_go_together():
    net = graph.trace(nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)))
    edits = methods.least_entropy(net, {"_1": 0.0, "_2": 0.0})
    graph.edit(net, edits)
    assert len(edits) == 2 and not graph.rectifiers(net)


def test_blocks_go_by_their_distance_also_where_they_follow_each_other():
    blocks = [Block("a", "x", "a_end"), Block("b", "a_end", "b_end"), Block("c", "b_end", "c_end")]
    distances = {"a": 0.2, "b": 0.1, "c": 0.3}
    assert methods.least_distance(blocks, distances, 0) == [Edit("b_end", "a_end")]
    assert methods.least_distance(blocks, distances, 1) == [Edit("a_end", "x")]
    assert methods.least_distance(blocks, distances, 2) == [Edit("c_end", "x")]
    assert methods.least_distance(blocks, distances, 3) == []
    net = graph.trace(archs.build("resnet18-cifar", 4))
    found = graph.blocks(net, (3, 8, 8))
    ranked = {block.name: float(index) for index, block in enumerate(reversed(found))}
    for done in range(len(found)):
        graph.edit(net, methods.least_distance(found, ranked, done))
    assert not graph.blocks(net, (3, 8, 8)) and net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_distances_are_those_of_the_blocks_and_have_gradients():
    torch.manual_seed(0)
    net = graph.trace(archs.build("resnet18-cifar", 4))
    found = graph.blocks(net, (3, 8, 8))
    measured = lacoot.Distances(net, found, 7)
    assert measured.network.state_dict().keys() == net.state_dict().keys()
    images = torch.randn(6, 3, 8, 8)
    torch.testing.assert_close(measured.network.eval()(images), net(images))
    values = measured(torch.Generator().manual_seed(1))
    # one block by hand: both sides sorted along every direction
    generator = torch.Generator().manual_seed(1)
    nodes = {}
    for node in measured.network.graph.nodes:
        nodes[node.name] = node
    inner = torch.fx.Interpreter(net, garbage_collect_values=False)
    with torch.no_grad():
        inner.run(images)
    block = found[0]
    before, after = (inner.env[graph.find(net, name)].flatten(1) for name in (block.start, block.end))
    directions = nn.functional.normalize(torch.randn(before.shape[1], 7, generator=generator), dim=0)
    gaps = ((before @ directions).sort(0).values - (after @ directions).sort(0).values) ** 2
    torch.testing.assert_close(values[0], gaps.mean(0).max().sqrt(), rtol=1e-4, atol=1e-5)
    values.mean().backward()
    assert net.get_submodule("layer1.0.conv1").weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: methods.method("depthshrinker", "resnet18"), "choose from egp, nepenthe, easier, lacoot"),
        (lambda: methods.method("egp", "resnet18").changed(zeta=1.5), "zeta is 1.5"),
        (lambda: methods.method("egp", "resnet18").changed(rounds=0), "rounds is 0"),
        (lambda: methods.method("easier", "resnet18").changed(zero="of"), "choose from off, on, drop"),
        (lambda: methods.method("easier", "resnet18").changed(zeta=0.5), "easier has no parameter zeta"),
        (lambda: methods.method("nepenthe", "resnet18").changed(lambda_=1.0), "nepenthe has no parameter lambda;"),
        (lambda: methods.method("lacoot", "resnet18").changed(lambda_=-1.0), "lambda is -1.0"),
        (lambda: methods.method("lacoot", "resnet18").changed(projections=0), "projections is 0"),
    ],
)
def test_wrong_parameters_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_defaults_are_the_papers():
    egp, nepenthe, easier, lacoot_ = (methods.METHODS[name] for name in ("egp", "nepenthe", "easier", "lacoot"))
    assert (egp.zero, egp.mean, egp.zeta, egp.rounds) == ("off", "switching", 0.5, 9)
    assert (nepenthe.zero, nepenthe.mean, nepenthe.zeta, nepenthe.rounds) == ("drop", "all", 0.5, None)
    assert (easier.zero, easier.mean) == ("on", "all")
    assert [methods.method("lacoot", arch).lambda_ for arch in ("resnet18", "mobilenet_v2", "swin_t")] == [5, 9, 0.1]
