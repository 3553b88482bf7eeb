import numpy as np
import pytest
from blobs import blobs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from entropi.export import ridge


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5), samples=st.sampled_from([5, 60, 240]))
@settings(max_examples=20, deadline=None)
def test_the_folded_head_predicts_what_the_standardised_one_does(seed, classes, samples):
    """scikit-learn's ridge on standardised features with one of the same penalties; few samples, too."""
    x, y = blobs(seed, min(classes, samples), samples)
    x[:, 2] = 7 + 1e-6 * x[:, 2]  # a unit that never changes
    varies = np.arange(6) != 2
    standard = (x - x.mean(0, dtype=np.float64))[:, varies] / x.std(0, dtype=np.float64)[varies]
    onehot = np.eye(y.max() + 1)[y]
    head = ridge.ridge(x, y)
    assert head.weight.shape == (y.max() + 1, 6) and head.weight.dtype == np.float32
    fits = [Ridge(penalty * samples).fit(standard, onehot).predict(standard) for penalty in ridge.PENALTIES]
    ours = x @ head.weight.T + head.bias
    assert min(np.abs(ours - fit).max() for fit in fits) < 2e-3


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_separable_features_are_learned(classes):
    x, y = blobs(1, classes, 400)
    head = ridge.ridge(x[:200], y[:200])
    assert head.accuracy(x[200:], y[200:]) > 0.95


@pytest.mark.parametrize(("samples", "units"), [(30, 6), (14, 20)])
def test_held_out_equals_training_without_each_sample(samples, units):
    rng = np.random.default_rng(samples)
    labels = rng.permutation(np.arange(samples) % 3 + 5)
    y = rng.normal(size=(samples, units)) + np.eye(units)[labels - 5]
    y[:, 1] = 0.1  # says nothing
    x = y.astype(np.float32).astype(np.float64)
    keep = np.arange(units) != 1
    x = (x[:, keep] - x[:, keep].mean(0)) / x[:, keep].std(0)
    onehot = np.eye(3)[labels - 5]
    by_penalty = []
    for penalty in ridge.PENALTIES:
        predicted = np.empty((samples, 3))
        for i in range(samples):
            others = np.arange(samples) != i
            predicted[i] = Ridge(penalty * samples).fit(x[others], onehot[others]).predict(x[i : i + 1])
        by_penalty.append((((onehot - predicted) ** 2).sum(), predicted.argmax(1) + 5 == labels))
    expected = min(by_penalty, key=lambda pair: pair[0])[1]
    np.testing.assert_array_equal(ridge.held_out(y, labels), expected)


def test_held_out_is_perfect_or_chance():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    assert ridge.held_out(np.eye(4)[labels] * 5 + rng.normal(size=(400, 4)) * 0.1, labels).all()
    assert ridge.held_out(rng.normal(size=(400, 4)), labels).mean() < 0.4
    assert ridge.held_out(np.ones((8, 4)), np.arange(8) % 4).mean() <= 0.25
