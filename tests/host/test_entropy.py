import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from entropi.host.entropy import ALIASES, ESTIMATORS, TAILS, Features, measure

CLOSE = 1e-4  # nats: what float32 products may cost
ENTROPY_OF_CODES = ("joint", "marginal", "marginal-robust")
ENTROPY_OF_SPECTRUM = ("spectral", "spectral-correlation", "rankme")


def h(weights):
    p = np.array([w for w in weights if w > 0], np.float64)
    p /= p.sum()
    return float(-(p * np.log(p)).sum())


def codes(y, levels, low, high):
    """Eq. 2-3, word for word, for outputs that lie in [low, high]."""
    delta = (high - low) / levels
    return np.floor(y / delta + 0.5).astype(int) if delta else np.zeros(y.shape, int)


def marginal(q):
    return sum(h(list(Counter(unit).values())) for unit in q.T)


def direct(features, levels=4):
    """Every estimator by its definition: float64, no shortcut, singular values instead of products."""
    y = features.astype(np.float64)
    low, high = (float(x) for x in np.quantile(features, TAILS))
    centred = y[:, np.ptp(y, 0) > 0]
    centred = centred - centred.mean(0)
    q = codes(y, levels, y.min(), y.max())
    standardised = centred / centred.std(0)
    return {
        "joint": h(list(Counter(map(tuple, q)).values())),
        "marginal": marginal(q),
        "marginal-robust": marginal(codes(y.clip(low, high), levels, low, high)),
        "spectral": h(np.linalg.svd(centred, compute_uv=False) ** 2) if centred.size else 0.0,
        "spectral-correlation": h(np.linalg.svd(standardised, compute_uv=False) ** 2) if centred.size else 0.0,
        "rankme": h(np.linalg.svd(y, compute_uv=False)) if y.any() else 0.0,
    }


def outputs(fewest_samples=1, fewest_units=1):
    return st.tuples(st.integers(fewest_samples, 12), st.integers(fewest_units, 6)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.floats(-50, 50, width=16).map(lambda x: round(x, 2)))
    )


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=60, deadline=None)
@given(y=outputs(), levels=st.integers(1, 6))
def test_equals_its_definition(name, y, levels):
    assert ESTIMATORS[name](Features(y, levels)) == pytest.approx(direct(y, levels)[name], abs=CLOSE)


@pytest.mark.parametrize("name", ENTROPY_OF_SPECTRUM)
@pytest.mark.parametrize(("samples", "units"), [(600, 200), (100, 200)])
@pytest.mark.parametrize("decay", [0, 1, 3, 5])
def test_single_precision_is_accurate_enough(name, samples, units, decay):
    rng = np.random.default_rng(decay)
    mixing = np.linalg.qr(rng.normal(size=(units, units)))[0]
    y = (rng.normal(size=(samples, units)) * np.arange(1.0, units + 1) ** (-decay / 2)) @ mixing
    y = (10 * y + 3).astype(np.float32)
    assert ESTIMATORS[name](y) == pytest.approx(direct(y)[name], abs=CLOSE)


@settings(max_examples=60, deadline=None)
@given(y=outputs())
def test_bounds(y):
    got = measure(Features(y), ESTIMATORS)
    n, f = y.shape
    assert min(got.estimates.values()) >= 0
    assert got.estimates["joint"] <= min(math.log(n), got.estimates["marginal"]) + 1e-9
    assert got.estimates["marginal"] <= f * math.log(5) + 1e-9
    assert got.estimates["spectral"] <= math.log(max(1, min(n - 1, f))) + CLOSE
    assert got.estimates["rankme"] <= math.log(min(n, f)) + CLOSE
    assert 1 <= got.states <= n and got.samples == n
    assert got.delta == pytest.approx(float(y.max() - np.float64(y.min())) / 4)


@settings(max_examples=60, deadline=None)
@given(y=outputs(), seed=st.integers(0, 99))
def test_the_order_of_the_samples_does_not_matter(y, seed):
    shuffled = np.random.default_rng(seed).permutation(y)
    for name in ENTROPY_OF_CODES:
        assert ESTIMATORS[name](shuffled) == pytest.approx(ESTIMATORS[name](y), abs=1e-12)
    for name in ENTROPY_OF_SPECTRUM:
        assert ESTIMATORS[name](shuffled) == pytest.approx(ESTIMATORS[name](y), abs=CLOSE)


@settings(max_examples=60, deadline=None)
@given(y=outputs(fewest_units=2), seed=st.integers(0, 99), scale=st.sampled_from([1e-20, 0.3, 7.0, 1e20]))
def test_invariances_of_the_spectra(y, seed, scale):
    assume(np.ptp(y, 0).max() > 0.1)
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(y.shape[1],) * 2))[0].astype(np.float32)
    assert ESTIMATORS["spectral"](y @ rotation * np.float32(scale)) == pytest.approx(
        ESTIMATORS["spectral"](y), abs=10 * CLOSE
    )
    assert ESTIMATORS["spectral"](y + 16) == pytest.approx(ESTIMATORS["spectral"](y), abs=10 * CLOSE)
    assert ESTIMATORS["rankme"](y @ rotation * np.float32(scale)) == pytest.approx(ESTIMATORS["rankme"](y), abs=0.01)
    units = 2.0 ** np.arange(-3, y.shape[1] - 3, dtype=np.float32)
    correlation = ESTIMATORS["spectral-correlation"]
    assert correlation(y * units) == pytest.approx(correlation(y), abs=CLOSE)


@pytest.mark.parametrize("d", [1, 2, 8, 64])
def test_isotropic_features_have_the_logarithm_of_their_number(d):
    y = np.concatenate([np.eye(d), -np.eye(d)])
    for name in ENTROPY_OF_SPECTRUM:
        assert ESTIMATORS[name](y) == pytest.approx(math.log(d), abs=1e-6)
        assert ESTIMATORS[name](np.hstack([y] * 3)) == pytest.approx(math.log(d), abs=1e-4)  # fewer samples than units


def test_rank_one_features_have_no_spectral_entropy():
    y = np.outer(np.linspace(-1, 1, 100), np.arange(1, 33))
    for name in ENTROPY_OF_SPECTRUM:
        assert ESTIMATORS[name](y) == pytest.approx(0, abs=CLOSE)


def test_a_large_common_offset_does_not_swamp_the_covariance():
    y = np.concatenate([np.eye(8), -np.eye(8)])
    for name in ("spectral", "spectral-correlation"):
        assert ESTIMATORS[name](y + 1e6) == pytest.approx(math.log(8), abs=1e-6)


def test_joint_is_at_most_the_logarithm_of_the_samples():
    y = np.random.default_rng(0).normal(size=(500, 40))
    got = measure(Features(y), ["joint"])
    assert got.states == 500 and got.estimates == {"joint": pytest.approx(math.log(500))}
    assert measure(Features(y), ["spectral"]).states is None


def test_an_outlier_sets_the_range_of_one_marginal_and_not_of_the_other():
    y = np.random.default_rng(0).uniform(size=(500, 10)).astype(np.float32)
    spoilt = y.copy()
    spoilt[7, 3] = 1000
    assert ESTIMATORS["marginal"](spoilt) < 0.1 < 10 < ESTIMATORS["marginal"](y)
    assert ESTIMATORS["marginal-robust"](spoilt) == pytest.approx(ESTIMATORS["marginal-robust"](y), rel=0.01)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.25, -1e20])
@pytest.mark.parametrize("samples", [1, 2, 300])
def test_constant_features_carry_exactly_nothing(value, samples):
    got = measure(Features(np.full((samples, 4), value)), ESTIMATORS)
    assert got.estimates.pop("rankme") == pytest.approx(0, abs=1e-6)
    assert set(got.estimates.values()) == {0.0} and (got.states, got.delta) == (1, 0)


@settings(max_examples=60, deadline=None)
@given(y=outputs(fewest_samples=2), constant=st.sampled_from([0.0, 0.1, 33.3, -49.9]))
def test_units_that_never_change_contribute_nothing(y, constant):
    low, high = y.min(), y.max()
    dead = np.full((len(y), 2), np.float32(constant).clip(low, high))
    for name, tolerance in (("joint", 0), ("marginal", 1e-12), ("spectral", CLOSE), ("spectral-correlation", CLOSE)):
        assert ESTIMATORS[name](np.hstack([dead, y])) == pytest.approx(ESTIMATORS[name](y), abs=tolerance)
    zeros = np.zeros_like(dead)
    assert ESTIMATORS["rankme"](np.hstack([y, zeros])) == pytest.approx(ESTIMATORS["rankme"](y), abs=CLOSE)


def test_units_that_are_each_constant_carry_nothing():
    got = measure(Features(np.tile([0.1, 0.7, 1e5], (8, 1))), ("joint", "marginal", "spectral", "spectral-correlation"))
    assert set(got.estimates.values()) == {0.0} and got.states == 1


@settings(max_examples=60, deadline=None)
@given(y=outputs())
def test_one_sample_or_the_same_again_and_again(y):
    for same in (y[:1], np.repeat(y[:1], 5, 0)):
        got = measure(Features(same), ESTIMATORS).estimates
        assert got.pop("rankme") == pytest.approx(0, abs=1e-5)
        assert set(got.values()) == {0.0}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e31])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_features_that_are_not_finite_name_the_sample(bad, name):
    y = np.zeros((6, 3), np.float32)
    y[4, 1] = bad
    with pytest.raises(ValueError, match="sample 4 hold NaN, infinity or values beyond 1e.30"):
        ESTIMATORS[name](y)


def test_wrong_use():
    with pytest.raises(ValueError, match="at least one sample"):
        Features(np.zeros((0, 3)))
    for levels in (0, 251):
        with pytest.raises(ValueError, match=f"levels is {levels}"):
            Features(np.eye(2), levels)


def test_paper_is_an_estimator_of_the_paper():
    assert ALIASES == {"paper": "marginal"} and set(ALIASES.values()) <= set(ESTIMATORS)
    assert all(estimate.__doc__ for estimate in ESTIMATORS.values())
