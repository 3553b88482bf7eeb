"""The arithmetic behind the integer network."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from networks import reference

from entropi.export.integer import (
    CONV,
    Layer,
    Network,
    Tensor,
    cropped,
    folded,
    mean_scale,
    quantise_multiplier,
    window_span,
)


@settings(max_examples=500)
@given(real=st.floats(2.0**-45, 2.0**30, allow_nan=False))
@example(real=1.0)
@example(real=math.nextafter(1.0, 0.0))
@example(real=2.0**-32)
@example(real=math.nextafter(2.0**-32, 0.0))
def test_a_multiplier_is_the_nearest_there_is(real):
    multiplier, shift = quantise_multiplier(real)
    if (multiplier, shift) == (0, 0):
        assert real < 2.0**-32
        return
    assert 1 << 30 <= multiplier < 1 << 31
    assert shift >= -31
    step = Fraction(2) ** (shift - 31)
    error = Fraction(real) - multiplier * step
    assert -step / 2 <= error < step / 2 or multiplier == 1 << 30 and -step / 2 <= error <= step / 4


def test_a_multiplier_of_nothing_is_nothing():
    assert quantise_multiplier(0.0) == (0, 0)


@settings(max_examples=300)
@given(ratio=st.floats(0.01, 100), height=st.integers(1, 40), width=st.integers(1, 40))
def test_the_mean_divides_in_its_multiplier(ratio, height, width):
    source, out = Tensor(1, height, width, ratio, 0), Tensor(1, 1, 1, 1.0, 0)
    multiplier, shift = mean_scale(source, out)
    assert 0 < multiplier < 1 << 31 and -31 <= shift <= 30
    exact = Fraction(ratio) / (height * width)
    assert abs(multiplier * Fraction(2) ** (shift - 31) / exact - 1) < Fraction(1, 1 << 28)


@settings(max_examples=400)
@given(
    size=st.integers(1, 6),
    out=st.integers(1, 6),
    kernel=st.integers(1, 8),
    stride=st.integers(1, 4),
    pad=st.integers(0, 7),
)
def test_a_window_span_holds_every_index_that_meets_data(size, out, kernel, stride, pad):
    first, end = window_span(size, out, kernel, stride, pad)
    meets = np.zeros(kernel, bool)
    for position in range(out):
        for index in range(kernel):
            meets[index] |= 0 <= position * stride - pad + index < size
    assert 0 <= first < end <= kernel
    if meets.any():
        assert meets[first] and meets[end - 1]
        assert not meets[:first].any() and not meets[end:].any()


@settings(max_examples=250, deadline=None)
@given(
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    same=st.booleans(),
    pads=st.tuples(*[st.integers(0, 4)] * 4),
    zero_point=st.integers(-128, 127),
    seed=st.integers(0, 2**32),
)
@example((1, 1), (3, 3), (1, 1), True, (0,) * 4, -128, 0)
@example((1, 1), (3, 3), (2, 2), True, (0,) * 4, 5, 0)
@example((2, 2), (3, 3), (1, 1), True, (0,) * 4, 127, 0)
@example((2, 2), (3, 3), (2, 2), False, (1,) * 4, -20, 0)
@example((2, 2), (3, 3), (2, 2), True, (0,) * 4, -20, 0)
def test_cropping_and_folding_change_nothing(size, kernel, stride, same, pads, zero_point, seed):
    """Before: sums of w * (x - zero point) with zeros around. After: fewer taps, no zero point, a border."""
    rng = np.random.default_rng(seed)
    if same:
        out_size = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        total = [max((o - 1) * s + k - n, 0) for o, s, k, n in zip(out_size, stride, kernel, size, strict=True)]
        pad = tuple(t // 2 for t in total)
    else:
        pad = pads[:2]
        out_size = [(n + p + q - k) // s + 1 for n, p, q, k, s in zip(size, pad, pads[2:], kernel, stride, strict=True)]
        assume(min(out_size) > 0)
    source, out = Tensor(3, *size, 0.1, zero_point), Tensor(4, *out_size, 0.1, -9)
    weight = rng.integers(-127, 128, (4, 3, *kernel)).astype(np.int8)
    scales = tuple(quantise_multiplier(x) for x in rng.uniform(1e-4, 1e-2, 4))
    layer = Layer(CONV, "conv", (0,), 1, -128, 127, kernel, stride, pad, scales, weight, rng.integers(-999, 999, 4))

    values = rng.integers(-128, 128, source.shape).astype(np.int8)
    centred = {0: Tensor(3, *size, 0.1, 0), 1: out}
    before = reference(Network(centred, 0, 1, [layer]), values.astype(np.int64) - zero_point)[0]
    small = folded(cropped(layer, source, out), source)
    after = reference(Network({0: source, 1: out}, 0, 1, [small]), values)[0]
    np.testing.assert_array_equal(after, before)
    assert small.kernel == small.weight.shape[2:]
    assert small.weight.size <= weight.size and min(small.pad) >= 0
