import pytest
import torch
from torch import nn

from entropi.host.networks import archs, graph
from entropi.host.networks.graph import Edit


def traced(arch: str):
    with torch.device("meta"):
        return graph.trace(archs.build(arch, 10))


@pytest.mark.parametrize(
    ("arch", "rectifiers", "blocks"),
    [("resnet18", 17, 5), ("mobilenet_v2", 35, 10), ("vgg16_bn", 15, 0), ("swin_t", 12, 12), ("resnet8", 7, 1),
     ("mobilenet_v3_small", 33, 6), ("efficientnet_b0", 49, 9)],
)  # fmt: skip
def test_rectifiers_and_blocks_of_known_networks(arch, rectifiers, blocks):
    net = traced(arch)
    assert len(graph.rectifiers(net)) == rectifiers
    found = graph.blocks(net, (3, 64, 64))
    assert len(found) == blocks and len({block.name for block in found}) == blocks
    last = [node for node in graph.rectifiers(net) if graph.channel_axis(net, node) == -1]
    assert len(last) == {"swin_t": 12, "vgg16_bn": 2, "mobilenet_v3_small": 1}.get(arch, 0)  # behind a Linear


def test_resnet18_is_taken_apart_as_the_papers_do():
    net = traced("resnet18")
    shared = {node.target for node in graph.rectifiers(net)}
    assert len(shared) == 9  # the two of a block are one module
    first = graph.find(net, "layer1_0_relu")
    assert graph.feeders(net, first) == ["layer1.0.conv1"]
    assert graph.feeders(net, graph.find(net, "layer2_0_relu_1")) == ["layer2.0.conv2", "layer2.0.downsample.0"]
    assert graph.feeders(net, graph.find(net, "layer1_0_relu_1")) == ["layer1.0.conv2"]  # not past the shortcut's
    stem = graph.find(net, "relu")
    assert stem in graph.rectifiers(net) and stem not in graph.removable(net)  # the padded max pool is behind it
    assert [(b.name, b.start, b.end) for b in graph.blocks(net, (3, 32, 32))][1:3] == [
        ("layer1.1", "layer1_0_relu_1", "layer1_1_relu_1"),
        ("layer2.1", "layer2_0_relu_1", "layer2_1_relu_1"),
    ]


@pytest.mark.parametrize("arch", ["resnet18", "swin_t", "mobilenet_v3_small"])
def test_tracing_changes_neither_numbers_nor_names(arch):
    torch.manual_seed(0)
    model = archs.build(arch, 10)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.eval()(images)
        torch.testing.assert_close(graph.trace(model)(images), expected)
        net = graph.trace(model)
    assert net.state_dict().keys() == model.state_dict().keys()
    assert archs.head_name(net) == archs.head_name(model)
    torch.manual_seed(1)
    a = net.train()(images)
    torch.manual_seed(1)
    torch.testing.assert_close(a, model.train()(images))  # with dropout and stochastic depth


class InPlace(nn.Module):
    """Every way to write a rectifier that destroys its input, and a shortcut round one."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.fc, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, classes), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.conv(x)
        y = nn.functional.relu(x - 0.1, True)
        y += torch.relu_(x - 0.2)
        y = self.relu(y - 0.5)
        y = (y - 0.1).relu_()
        return self.fc(nn.functional.gelu(input=y, approximate="tanh").mean((2, 3)))


def test_nothing_is_computed_in_place():
    model = InPlace().eval()
    images = torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = model(images)
        net = graph.trace(model)
        torch.testing.assert_close(net(images), expected)
    assert len(graph.rectifiers(net)) == 5
    for node in graph.rectifiers(net):
        assert len(node.args) == 1 and "inplace" not in node.kwargs
    assert not model.relu.inplace and "+=" not in net.code and "relu_(" not in net.code


class Asks(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(("module", "says"), [(Asks, "nn.Dropout"), (Branches, "may not branch on values")])
def test_what_cannot_be_traced_is_refused_in_one_line(module, says):
    with pytest.raises(ValueError, match=says) as refused:
        graph.trace(module())
    assert "\n" not in str(refused.value)


def test_edits_remove_what_nothing_reads_any_more():
    net = traced("resnet18")
    graph.edit(net, [Edit("layer4_1_relu_1", "layer4_0_relu_1"), Edit("layer1_0_relu", "layer1_0_bn1")])
    assert (
        not any(name.startswith("layer4.1") for name in net.state_dict())
        and "layer1.0.conv1.weight" in net.state_dict()
    )
    assert len(graph.rectifiers(net)) == 14
    with pytest.raises(ValueError, match="no node 'layer4_1_relu_1'"):
        graph.edit(net, [Edit("layer4_1_relu_1", "relu")])


@pytest.mark.parametrize(
    ("arch", "emptied", "carries"),
    [
        ("resnet18", {"layer1.0.conv2", "layer4.1.conv1"}, True),
        ("resnet18", {"conv1"}, False),
        ("resnet18", {"layer2.0.conv2"}, True),
        ("resnet18", {"layer2.0.conv1", "layer2.0.downsample.0"}, False),  # both ways
        ("mobilenet_v2", {"features.18.0"}, False),  # what EGP empties in its first round
        ("vgg16_bn", {"features.40"}, False),
        ("mobilenet_v3_small", {"features.1.block.1.fc1"}, False),  # a factor
        ("swin_t", {"features.1.0.mlp.0"}, True),
    ],
)
def test_whether_there_is_a_way_round_emptied_layers(arch, emptied, carries):
    assert graph.carries(traced(arch), emptied) is carries


def test_blocks_by_their_path_length():
    net = traced("resnet18")
    assert graph.longest_path(net) == 18
    graph.edit(net, [Edit(block.end, block.start) for block in graph.blocks(net, (3, 32, 32))[-1:]])
    assert graph.longest_path(net) == 16
