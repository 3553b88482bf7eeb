"""The exponentials of an int8 softmax as TFLM's integer kernel computes them, in gemmlowp's fixed-point arithmetic.

Qm.n is an int32 with m bits before the point and n after it. All functions are elementwise on int64 arrays."""

from __future__ import annotations

import math

import numpy as np

from entropi.export.integer import quantise_multiplier

INPUT_BITS = 5  # scaled differences are Q5.26
INT32_MAX = (1 << 31) - 1
# exp(-2^k) in Q0.31, by k.
POWERS = {-2: 1672461947, -1: 1302514674, 0: 790015084, 1: 290630308, 2: 39332535, 3: 720401, 4: 242}


def exponentials(scale: float, beta: float) -> np.ndarray:
    """int32 [256] in Q0.31: exp(-beta * scale * d) for d = 0 ... 255, and 0 where TFLM takes it for nothing."""
    multiplier, shift = quantise_multiplier(min(beta * scale * (1 << (31 - INPUT_BITS)), float(INT32_MAX)))
    difference = -np.arange(256, dtype=np.int64)
    largest = math.floor(((1 << INPUT_BITS) - 1) * (1 << (31 - INPUT_BITS)) / (1 << shift))
    scaled = _multiply(difference << shift, np.int64(multiplier))
    return np.where(difference >= -largest, _exp(scaled), 0).astype("<i4")


def _multiply(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product = a * b
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    return np.sign(nudged) * (np.abs(nudged) >> 31)


def _divide(x: np.ndarray, bits: int) -> np.ndarray:
    mask = (1 << bits) - 1
    return (x >> bits) + ((x & mask) > (mask >> 1) + (x < 0))


def _exp(x: np.ndarray) -> np.ndarray:
    """exp of Q5.26 values at most 0: a polynomial for the part within a quarter, and a factor for every further bit."""
    quarter = 1 << (31 - INPUT_BITS - 2)
    within = (x & (quarter - 1)) - quarter
    result = _exp_within_a_quarter(np.clip(within << INPUT_BITS, -INT32_MAX - 1, INT32_MAX))
    rest = within - x
    for exponent, factor in POWERS.items():
        set_bit = rest >> (31 - INPUT_BITS + exponent) & 1
        result = np.where(set_bit, _multiply(result, np.int64(factor)), result)
    return np.where(x == 0, INT32_MAX, result)


def _exp_within_a_quarter(a: np.ndarray) -> np.ndarray:
    """exp of Q0.31 values in [-1/4, 0): exp(-1/8) (1 + x + x^2/2 + x^3/6 + x^4/24) with x = a + 1/8."""
    constant, third = np.int64(1895147668), np.int64(715827883)
    x = a + (1 << 28)
    x2 = _multiply(x, x)
    x3, x4 = _multiply(x2, x), _multiply(x2, x2)
    tail = _divide(_multiply(_divide(x4, 2) + x3, third) + x2, 1)
    return constant + _multiply(constant, x + tail)
