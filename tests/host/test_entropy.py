import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from entropi.host import entropy


def h(counts):
    p = np.array([c for c in counts if c > 0]) / sum(counts)
    return float(-(p * np.log(p)).sum())


def direct(y, levels):
    """Eq. 2-9 and the spectral entropy, word for word."""
    y = y.astype(np.float64)
    delta = (y.max() - y.min()) / levels
    if delta == 0:
        return 0.0, 1, 0.0, 0.0, 0.0
    q = np.floor(y / delta + 0.5).astype(int)
    states = Counter(map(tuple, q))
    marginal = sum(h(list(Counter(unit).values())) for unit in q.T)
    spectrum = np.linalg.eigvalsh(np.cov(y.T, bias=True).reshape(y.shape[1], -1)).clip(0)
    spectral = h(spectrum) if spectrum.sum() > 0 else 0.0
    return h(list(states.values())), len(states), marginal, delta, spectral


features = st.tuples(st.integers(1, 12), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-50, 50, width=16))
)


@given(features, st.integers(1, 6), st.integers(1, 12))
def test_equals_the_direct_computation_whatever_the_chunks(y, levels, chunk):
    got = entropy.measure([y[i : i + chunk] for i in range(0, len(y), chunk)], levels)
    joint, states, marginal, delta, spectral = direct(y, levels)
    assert got.states == states and got.samples == len(y)
    assert got.joint == pytest.approx(joint, abs=1e-12)
    assert got.marginal == pytest.approx(marginal, abs=1e-12)
    assert got.delta == pytest.approx(delta, rel=1e-12)
    assert got.spectral == pytest.approx(spectral, abs=1e-5)
    assert got.joint <= got.marginal + 1e-9


def test_joint_is_at_most_the_logarithm_of_the_samples():
    y = np.random.default_rng(0).normal(size=(500, 40)).astype(np.float32)
    got = entropy.measure(np.array_split(y, 7))
    assert got.states == 500 and got.joint == pytest.approx(math.log(500))


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_isotropic_features_have_the_logarithm_of_their_number(d):
    y = np.concatenate([np.eye(d), -np.eye(d)])
    assert entropy.measure([y]).spectral == pytest.approx(math.log(d), abs=1e-12)


def test_rank_one_features_have_no_spectral_entropy():
    y = np.outer(np.linspace(-1, 1, 100), np.arange(1, 33)) + 7
    assert entropy.measure(np.array_split(y, 9)).spectral == pytest.approx(0, abs=1e-9)


def test_a_large_common_offset_does_not_swamp_the_covariance():
    y = np.concatenate([np.eye(8), -np.eye(8)])
    assert entropy.measure(np.array_split(y + 1e6, 5)).spectral == pytest.approx(math.log(8), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 3.25])
def test_constant_features(value):
    got = entropy.measure([np.full((5, 4), value), np.full((2, 4), value)])
    assert got == entropy.Entropy(joint=0, states=1, marginal=0, delta=0, spectral=0, samples=7)


def test_units_that_are_each_constant_carry_nothing():
    got = entropy.measure([np.tile([0.1, 0.7, 1e5], (n, 1)) for n in (3, 4, 1)])
    assert (got.joint, got.marginal, got.spectral, got.states) == (0, 0, 0, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_name_the_sample(bad):
    y = np.zeros((6, 3))
    y[4, 1] = bad
    with pytest.raises(ValueError, match="sample 4 hold NaN or infinity"):
        entropy.measure([y[:3], y[3:]])


def test_no_features():
    with pytest.raises(ValueError, match="at least one sample"):
        entropy.measure([])


def test_levels_out_of_range():
    with pytest.raises(ValueError, match="levels is 0"):
        entropy.measure([np.eye(2)], levels=0)


def test_spills_to_disk_and_back(monkeypatch):
    y = np.random.default_rng(1).normal(size=(300, 20))
    in_memory = entropy.measure(np.array_split(y, 4))
    monkeypatch.setattr(entropy, "SPOOL_BYTES", 1000)
    assert entropy.measure(np.array_split(y, 4)) == in_memory
