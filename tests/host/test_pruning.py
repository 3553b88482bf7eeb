import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entropi.host.networks import archs
from entropi.host.training import pruning

values = st.sampled_from([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0]) | st.floats(0.0078125, 100, width=32)
layers = st.lists(st.lists(values, min_size=1, max_size=30), min_size=1, max_size=4)


def weights_of(layers):
    return {f"layer{i}": torch.tensor(layer).reshape(-1, 1) for i, layer in enumerate(layers)}


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


@given(layers, st.floats(0, 1))
def test_keeps_exactly_the_largest(layers, alpha):
    weights = weights_of(layers)
    magnitude, kept = flat(weights).abs(), flat(pruning.magnitude_masks(weights, alpha))
    assert kept.sum() == round(alpha * len(magnitude))
    if 0 < kept.sum() < len(kept):
        threshold = magnitude[kept].min()
        assert threshold >= magnitude[~kept].max()
        ties = kept[magnitude == threshold]
        assert (ties.int().diff() <= 0).all()  # of equal magnitudes the first are kept


@given(layers, st.lists(st.floats(0, 1), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_pruned_weights_never_return(layers, alphas, random):
    weights = weights_of(layers)
    before = torch.ones(len(flat(weights)), dtype=torch.bool)
    for alpha in sorted(alphas, reverse=True):
        masks = pruning.magnitude_masks(weights, alpha)
        kept = flat(masks)
        assert not (kept & ~before).any()
        pruning.apply(weights, masks)
        for weight in weights.values():  # retraining moves what is left
            weight.mul_(torch.tensor([random.uniform(0.5, 2) for _ in range(len(weight))]).reshape(-1, 1))
        before = kept


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="between 0 and 1"):
        pruning.magnitude_masks({"w": torch.ones(3)}, alpha)


def test_weights_that_are_not_finite():
    with pytest.raises(ValueError, match="NaN"):
        pruning.magnitude_masks({"w": torch.tensor([1.0, float("nan")])}, 0.5)


def test_head_biases_and_batch_norm_are_not_counted():
    model = archs.build("resnet18", 36)
    names = pruning.prunable(model)
    assert "fc.weight" not in names and "conv1.weight" in names and "layer2.0.downsample.0.weight" in names
    assert not any("bn" in name or "bias" in name for name in names)
    assert sum(w.numel() for w in names.values()) == 11_166_912


def test_unknown_network_lists_the_choices():
    with pytest.raises(ValueError, match="choose from resnet18"):
        archs.build("resnet19", 10)


def test_encoder_and_head_make_the_model():
    model = archs.build("resnet18", 7).eval()
    encoder, head = archs.split(model)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert encoder(x).shape == (2, 512)
        assert torch.equal(head(encoder(x)), model(x))
    assert isinstance(model.fc, torch.nn.Linear) and model.fc is not head
