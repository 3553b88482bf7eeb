import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from entropi.host.data import Split, characters
from entropi.host.networks import archs
from entropi.host.networks.inference import accuracy, normalise
from entropi.host.training import pruning
from entropi.host.training.engine import Engine
from entropi.host.training.trainer import SHIFT, Optimisation, Task, Trainer, TrainingError, shift_and_mirror

PLAN = Optimisation(epochs=2, lr=0.05, batch=32, weight_decay=0.01, augment=True)


@pytest.fixture(scope="module")
def split():
    return characters.draw(160, torch.Generator().manual_seed(0))


def network(seed=0):
    torch.manual_seed(seed)
    return archs.build("resnet8", 36).to(memory_format=torch.channels_last)


def trainer(model, split, plan=PLAN, precision="float32", alpha=1.0):
    weights = pruning.prunable(model)
    masks = pruning.magnitude_masks(weights, alpha)
    pruning.apply(weights, masks)
    task = Task.of(split, Engine(), precision)
    return Trainer(model, task, plan, {weights[name]: mask for name, mask in masks.items()} if alpha < 1 else None)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


images = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))


@settings(deadline=None)
@given(images)
def test_augmented_images_are_shifts_of_their_own_image(case):
    *shape, seed = case
    rng = np.random.default_rng(seed)
    originals = torch.from_numpy(rng.integers(1, 256, shape, np.uint8))  # no black: the border shows
    moved = shift_and_mirror(originals, np.random.default_rng(seed))
    assert moved.shape == originals.shape and moved.dtype == torch.uint8
    height, width = shape[2:]
    for original, image in zip(originals.numpy(), moved.numpy(), strict=True):
        padded = np.pad(original, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
        shifts = (padded[:, y : y + height, x : x + width] for y in range(2 * SHIFT + 1) for x in range(2 * SHIFT + 1))
        assert any(np.array_equal(image, one) or np.array_equal(image, one[..., ::-1]) for one in shifts)
    assert torch.equal(moved, shift_and_mirror(originals, np.random.default_rng(seed)))


def test_augmentation_takes_every_shift_equally_often():
    count = 16_200
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 1, 5, 5)
    moved = shift_and_mirror(image.expand(count, 1, 5, 5), np.random.default_rng(0))
    _, times = np.unique(moved.numpy().reshape(count, -1), axis=0, return_counts=True)
    assert len(times) == 81 * 2 and times.min() > 50 and times.max() < 160  # 100 expected


def test_normalised_pixels():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    x = normalise(pixels)
    torch.testing.assert_close(x, (pixels / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("warm_up", "rates"), [(0.0, [0.1, 0.05, 0]), (0.2, [0.01, 0.055, 0.1, 0.05, 0])])
def test_learning_rate_rises_and_falls_along_a_cosine(warm_up, rates):
    plan = Optimisation(epochs=1, lr=0.1, warm_up=warm_up)
    rising = [0, warm_up / 2] if warm_up else []
    progress = [*rising, warm_up, (1 + warm_up) / 2, 1]
    assert [plan.rate(p) for p in progress] == pytest.approx(rates)


@given(st.integers(1, 500), st.integers(1, 200), st.none() | st.integers(1, 600))
def test_every_batch_of_an_epoch_is_whole(size, batch, samples):
    plan = Optimisation(epochs=3, lr=0.1, batch=batch, samples=samples)
    seen = plan.steps_an_epoch(size) * plan.batch_size(size)
    drawn = min(size, samples or size)
    assert 1 <= plan.batch_size(size) <= batch and drawn - plan.batch_size(size) < seen <= drawn
    assert plan.steps(size) == 3 * plan.steps_an_epoch(size)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_epochs_improve_the_loss(split, precision):
    done = []
    training = trainer(network(), split, Optimisation(epochs=3, lr=0.05, batch=32), precision)
    losses = [training.epoch(epoch, (0,), done.append) for epoch in range(3)]
    assert all(math.isfinite(loss) for loss in losses) and losses[2] < losses[1] < losses[0]
    assert done == [1, 2, 3, 4, 5] * 3
    assert all(torch.isfinite(tensor).all() for tensor in training.state().values())
    assert accuracy(training.model, split) > 2 / 36


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pruned_weights_and_their_momentum_stay_zero(split, precision):
    model = network()
    training = trainer(model, split, precision=precision, alpha=0.1)
    pruned = {name: weight == 0 for name, weight in pruning.prunable(model).items()}
    kept = pruning.nonzeros(pruning.prunable(model))
    before = {name: weight.detach().clone() for name, weight in pruning.prunable(model).items()}
    for epoch in range(2):
        training.epoch(epoch, (0,))
    for name, weight in pruning.prunable(model).items():
        momentum = training.optimiser.state[weight]["momentum_buffer"]
        assert not weight[pruned[name]].any() and not momentum[pruned[name]].any()
        assert not torch.equal(weight, before[name])
    assert pruning.nonzeros(pruning.prunable(model)) == kept


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_restored_it_goes_on_bit_for_bit(split, precision):
    straight = trainer(network(), split, precision=precision, alpha=0.5)
    straight.epoch(0, (7, 1))
    kept = copy.deepcopy(straight.state())
    last = straight.epoch(1, (7, 1))

    other = trainer(network(), split, precision=precision, alpha=0.5)
    other.epoch(1, (1, 1))  # anything
    other.restore(kept)
    assert equal(other.state(), kept)
    torch.manual_seed(99)
    assert other.epoch(1, (7, 1)) == last
    assert equal(other.state(), straight.state())


def test_seeds_and_epochs_draw_differently(split):
    ends = []
    for epoch, seed in ((0, (0,)), (1, (0,)), (0, (1,))):
        training = trainer(network(), split, Optimisation(epochs=2, lr=0.05, batch=32, samples=32))
        ends.append(training.epoch(epoch, seed))
    assert len(set(ends)) == 3


class Unused(nn.Module):
    """A dropout, and a layer that forward() does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.unused = nn.Conv2d(3, 8, 3)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.conv(x).relu()).mean((2, 3)))


def test_dropout_is_repeatable_and_leaves_the_callers_random_state_alone(split):
    torch.manual_seed(5)
    model = Unused()
    ends, state = [], torch.random.get_rng_state()
    for _ in range(2):
        training = trainer(copy.deepcopy(model), split, alpha=0.5)
        ends.append(training.epoch(0, (0,)))
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(3)
        state = torch.random.get_rng_state()
    assert ends[0] == ends[1]


def test_fewer_images_than_a_batch():
    few = characters.draw(5, torch.Generator().manual_seed(0))
    training = trainer(network(), few, Optimisation(epochs=1, lr=0.01, batch=128))
    assert training.steps_an_epoch == 1 and math.isfinite(training.epoch(0, (0,)))


def test_divergence_is_an_error(split):
    training = trainer(network(), split, Optimisation(epochs=1, lr=1e30, batch=32))
    with pytest.raises(TrainingError, match=r"the loss is \w+ in epoch 1 at learning rate 1e\+30; choose a lower one"):
        training.epoch(0, (0,))


def test_automatic_precision():
    work = Engine()
    assert work.precision("float32", nn.Linear(1, 1)) == "float32"
    assert work.precision("bfloat16", nn.Linear(1, 1)) == "bfloat16"
    if work.device.type == "cpu":
        assert work.precision("auto", nn.Conv2d(4, 4, 3, groups=4)) == "float32"
        fast = torch.cpu._is_avx512_bf16_supported()
        assert work.precision("auto", nn.Conv2d(4, 4, 3)) == ("bfloat16" if fast else "float32")


def test_accuracy_is_the_share_of_right_answers():
    class Brightest(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    pixels = np.zeros((300, 3, 4, 4), np.uint8)
    pixels[np.arange(300), np.arange(300) % 3] = 9
    labels = np.arange(300) % 3
    labels[:30] = (labels[:30] + 1) % 3
    assert accuracy(Brightest(), Split(pixels, labels)) == pytest.approx(0.9)
