import pytest
import torch
from torch import nn

from entropi.host.networks import archs, cost
from entropi.host.training import pruning


def test_frozen_rows_of_table_2_to_the_digit():
    assert cost.frozen_cost(512, 5) == cost.Cost(flops=163_840, bytes=30_780)
    assert cost.frozen_cost(1280, 5) == cost.Cost(flops=409_600, bytes=76_860)


def test_our_table_2_beside_the_papers():
    rows = {(row.network, row.mode): row for row in cost.table_2()}
    assert len(rows) == 4
    for (_, mode), row in rows.items():
        if mode == "frozen":
            assert round(row.ours.flops / 1e6, 2) == row.paper_mflops
            assert round(row.ours.bytes / 1e6, 2) == row.paper_megabytes
    full = rows["ResNet18", "full"].ours
    assert full.flops == 3 * 2 * 32 * 37_014_016
    assert full.bytes > 12 * 11_179_077


def test_macs_of_layers_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(),
        nn.Linear(4 * 2 * 2, 5),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[1:] = 0
    layers = cost.macs(model, (3, 8, 8))
    assert [(layer.name, layer.dense, layer.nonzero) for layer in layers] == [
        ("0", 4 * 27 * 16, 27 * 16),
        ("2", 4 * 9 * 4, 4 * 9 * 4),
        ("4", 80, 80),
    ]
    assert model.training and cost.parameters(model) == 108 + 40 + 85


@pytest.mark.parametrize("arch", ["resnet8", "mobilenet_v3_small"])
def test_counting_without_weights(arch):
    with torch.device("meta"):
        hollow = archs.build(arch, 5)
    layers = cost.macs(hollow, (3, 48, 40))
    assert layers == cost.macs(archs.build(arch, 5), (3, 48, 40))
    assert cost.summary(arch, 5, (3, 48, 40)).macs == sum(layer.dense for layer in layers)


def test_pruning_lowers_only_the_nonzero_count():
    model = archs.build("resnet18", 36)
    before = cost.macs(model, (3, 32, 32))
    weights = pruning.prunable(model)
    pruning.apply(weights, pruning.magnitude_masks(weights, 0.1))
    after = cost.macs(model, (3, 32, 32))
    assert [layer.dense for layer in after] == [layer.dense for layer in before]
    assert sum(layer.nonzero for layer in after) < 0.6 * sum(layer.dense for layer in after)


def test_full_cost_of_a_linear_layer_counted_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 2))
    got = cost.full_cost(model, (3, 2, 2), batch=10)
    assert got.flops == 6 * 10 * (12 * 7 + 7 * 2)
    # autograd keeps the input of the first layer and the output of the ReLU
    assert got.bytes == 12 * (13 * 7 + 8 * 2) + 4 * 10 * (12 + 7)


@pytest.mark.parametrize("mode", [True, False])
def test_counting_leaves_the_model_as_it_was(mode):
    model = archs.build("resnet18", 5).train(mode)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost.full_cost(model, (3, 32, 32), batch=2)
    assert model.training is mode
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
