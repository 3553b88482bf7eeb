import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from entropi.host import heads


def blobs(seed: int, classes: int, samples: int = 240, features: int = 6, scale: float = 1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    centres = rng.normal(0, 3, (classes, features))
    spread = rng.uniform(0.1, 10, features) * scale
    points = (centres[labels] + rng.normal(0, 1, (samples, features))) * spread + rng.normal(0, 5, features)
    return points.astype(np.float32), labels.astype(np.int64)


@given(seed=st.integers(0, 10**6), classes=st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_the_folded_head_predicts_what_the_standardised_one_does(seed, classes):
    x, y = blobs(seed, classes)
    x[:, 2] = 7  # a unit that never changes
    mean, std = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1)
    plain = LogisticRegression(C=heads.C, max_iter=heads.MAX_ITERATIONS, tol=heads.TOLERANCE)
    scores = plain.fit((x - mean) / std, y).decision_function((x - mean) / std)
    head = heads.logistic(x, y)
    assert head.weight.shape == (classes, 6) and head.weight.dtype == np.float32
    ours = x @ head.weight.T + head.bias
    if classes == 2:
        scores = np.stack([-scores, scores], 1) / 2
    np.testing.assert_allclose(ours - ours.mean(1, keepdims=True), scores - scores.mean(1, keepdims=True), atol=2e-2)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_separable_features_are_learned(classes):
    x, y = blobs(1, classes, 400)
    head = heads.logistic(x[:200], y[:200])
    assert head.accuracy(x[200:], y[200:]) > 0.95


def test_the_papers_head_depends_on_the_scale_of_the_features_and_ours_does_not():
    x, y = blobs(2, 4, 400)
    for scale in (1e-2, 1e2):
        assert heads.logistic(scale * x, y).accuracy(scale * x, y) > 0.95
    small, large = (heads.paper(scale * x, y).accuracy(scale * x, y) for scale in (1e-2, 1e2))
    assert large > small + 0.2


def test_the_papers_head_repeats_itself():
    x, y = blobs(3, 3, 130)
    first, again, other = heads.paper(x, y), heads.paper(x, y), heads.paper(x, y, seed=1)
    np.testing.assert_array_equal(first.weight, again.weight)
    assert not np.array_equal(first.weight, other.weight)
