import numpy as np
import pytest
import torch
from blobs import blobs

from entropi.device.budget import recipe
from entropi.export import sgd


def test_heads_learn_side_by_side_what_torch_teaches_one():
    """The same samples in the same order through torch.optim.SGD."""
    x, y = blobs(0, 3)
    x = torch.as_tensor(x) / 30
    samples = [np.arange(8, 240), np.arange(0, 232)]
    weight, bias = sgd._learn(x, torch.as_tensor(y), 3, samples)
    how = recipe(3, 8, 4)
    rng = np.random.default_rng(0)
    orders = [[rng.permutation(s) for s in samples] for _ in range(sgd.ROUNDS)]
    for head in range(2):
        linear = torch.nn.Linear(x.shape[1], 3)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        optimiser = torch.optim.SGD(linear.parameters(), how.learning_rate, how.momentum)
        steps = 0
        for orders_of_round in orders:
            for batch in np.array_split(orders_of_round[head], 58):
                optimiser.param_groups[0]["lr"] = how.learning_rate / (1 + how.learning_rate_decay * steps)
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(linear(x[batch]), torch.as_tensor(y[batch])).backward()
                optimiser.step()
                steps += 1
        torch.testing.assert_close(weight[head], linear.weight.detach().T, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(bias[head], linear.bias.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 5, 63])
def test_few_samples_and_constant_features_are_judged_too(samples):
    labels = np.arange(samples) % 2 + 5
    assert sgd.held_out(np.ones((samples, 3)), labels).shape == (samples,)


def test_a_sample_is_judged_by_a_head_that_has_not_learned_it():
    """Labels by chance: a head that had seen its samples would know most of the 300 by 400 features."""
    rng = np.random.default_rng(0)
    right = sgd.held_out(rng.normal(size=(300, 400)), rng.integers(0, 2, 300))
    assert 0.35 < right.mean() < 0.65
