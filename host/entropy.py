"""How much an encoder's output says about a set of images: estimators that need no labels, all in nats.

ESTIMATORS maps a name to a function of features (N samples, F units); docs/selection.md says when each one fails.

joint                 entropy of the whole quantised output vector: ENTROPI, eq. 6
marginal              sum over units of the entropy of a unit's code, an upper bound of the joint: ENTROPI, eq. 8-9
marginal-robust       the same, its quantiser's range set by quantiles and not by one outlier
spectral              von Neumann entropy of the covariance; its exponential is Roy and Vetterli's effective rank (2007)
spectral-correlation  the same of the correlation matrix, in which every unit weighs alike
rankme                entropy of the singular values, not centred; RankMe (Garrido et al. 2023) is its exponential
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, wraps

import numpy as np

DEFAULT = "spectral-correlation"  # what chooses unless told otherwise; results/paper/regret.json says why
LEVELS = 4  # M of eq. 3, the paper's value
MAX_LEVELS = 250
TAILS = (0.001, 0.999)  # quantiles that bound the robust range
LARGEST = 1e30  # a feature beyond it comes from a network that diverged
SMALLEST = 1e-30  # range of the outputs; its inverse is a float32
PRODUCT_BLOCK = 1024  # rows that are multiplied with each other at a time
BLOCK = 255  # rows that are quantised or counted at a time: counts of one block fit a byte, a block fits the cache

# The paper does not say which of its two Fig. 3 plots; eq. 6 soon stands at log N on every rung and can choose none.
ALIASES = {"paper": "marginal"}


class Features:
    """Outputs of one encoder, float32 (N, F), and what several estimators need of them, each part computed once.

    `levels` is M of eq. 3. Raises ValueError for `levels` out of range, for no samples, and naming the sample that
    holds NaN, infinity or a value beyond 1e30."""

    def __init__(self, values: np.ndarray, levels: int = LEVELS) -> None:
        if not 1 <= levels <= MAX_LEVELS:
            raise ValueError(f"levels is {levels}; the quantiser needs between 1 and {MAX_LEVELS}")
        if not len(values):
            raise ValueError("there are no features to measure; the data set needs at least one sample")
        self.levels = levels
        self.values = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
        self.low, self.high = float(self.values.min()), float(self.values.max())
        if not -LARGEST <= self.low <= self.high <= LARGEST:  # false for NaN, too
            row = int((~(np.abs(self.values) <= LARGEST)).any(1).argmax())
            raise ValueError(
                f"features of sample {row} hold NaN, infinity or values beyond {LARGEST:g}; "
                "the encoder is damaged or diverged, so train this rung again"
            )

    @property
    def delta(self) -> float:
        """The quantiser's step (eq. 3)."""
        return (self.high - self.low) / self.levels

    @cached_property
    def codes(self) -> np.ndarray:
        """uint8 (N, F): the quantisation index of every output (eq. 2), counted from the smallest."""
        return self.quantise(self.low, self.high)

    @cached_property
    def states(self) -> np.ndarray:
        """How often each distinct state, a whole row of codes, occurs (eq. 5)."""
        return np.fromiter(Counter(row.tobytes() for row in self.codes).values(), np.int64)

    @cached_property
    def centred(self) -> np.ndarray:
        """float32 (N, F): every unit without its mean, all in units of the range of the outputs.

        A unit that never changes is exactly zero whatever its value."""
        centred = (self.values - self._middle) * self._unit
        centred -= centred.mean(0)
        return centred

    @cached_property
    def scatter(self) -> np.ndarray:
        """float32 (F, F): the lower triangle of centred^T centred, made without a copy of all features."""
        from scipy.linalg.blas import ssyrk

        samples, units = self.values.shape
        scatter, sums = np.zeros((units, units), np.float32, order="F"), np.zeros(units)
        middle, unit = self._middle, self._unit
        for start in range(0, samples, PRODUCT_BLOCK):
            block = self.values[start : start + PRODUCT_BLOCK] - middle
            block *= unit
            scatter = ssyrk(1, block.T, beta=1, c=scatter, overwrite_c=True)
            sums += block.sum(0)
        scatter = ssyrk(-1 / samples, sums[:, None].astype(np.float32), beta=1, c=scatter, overwrite_c=True)
        return scatter.T

    @property
    def _middle(self) -> np.ndarray:
        """float32 (F,): near every unit's mean, so that little is lost when what remains of it is taken off; and in
        float64 first, in which the mean of one value many times over is that value."""
        some = self.values[:: -(-len(self.values) // BLOCK)]
        return some.mean(0, dtype=np.float64).astype(np.float32)

    @property
    def _unit(self) -> np.float32:
        return np.float32(1 / max(self.high - self.low, SMALLEST))

    @property
    def by_unit(self) -> bool:
        """Whether there are as many samples as units, so that the units' scatter matrix is the smaller one."""
        return len(self.values) >= self.values.shape[1]

    @cached_property
    def gram(self) -> np.ndarray:
        """Of the centred units: the smaller of their scatter matrix and the samples', with the same eigenvalues."""
        return self.scatter if self.by_unit else self.centred @ self.centred.T

    def quantise(self, low: float, high: float) -> np.ndarray:
        """floor(y / delta + 1/2), y clipped to [low, high] and delta = (high - low) / levels, as uint8 from 0."""
        delta = (high - low) / self.levels
        codes = np.zeros(self.values.shape, np.uint8)
        for start in range(0, len(codes) if delta else 0, BLOCK):
            block = np.clip(self.values[start : start + BLOCK].astype(np.float64), low, high)
            codes[start : start + BLOCK] = np.floor(block / delta + 0.5) - np.floor(low / delta + 0.5)
        return codes


ESTIMATORS: dict[str, Callable[[np.ndarray | Features], float]] = {}


def _estimator(name: str) -> Callable:
    """Puts a function of Features into ESTIMATORS, from where it takes an array as well."""

    def register(function: Callable[[Features], float]) -> Callable[[np.ndarray | Features], float]:
        @wraps(function)
        def estimate(features: np.ndarray | Features) -> float:
            return function(features if isinstance(features, Features) else Features(features))

        ESTIMATORS[name] = estimate
        return estimate

    return register


@_estimator("joint")
def joint(features: Features) -> float:
    """H = -sum over states k of p_k log p_k, p_k the share of samples in state k (eq. 5-6). At most log N."""
    return _entropy(features.states)


@_estimator("marginal")
def marginal(features: Features) -> float:
    """H = -sum over units i and codes k of p_ik log p_ik (eq. 8), p_ik as in eq. 9. At most F log(M + 1)."""
    return _marginal(features.codes)


@_estimator("marginal-robust")
def marginal_robust(features: Features) -> float:
    """As marginal, with eq. 3's max and min replaced by the 99.9 % and 0.1 % quantiles over all units and samples."""
    return _marginal(features.quantise(*map(float, np.quantile(features.values, TAILS))))


@_estimator("spectral")
def spectral(features: Features) -> float:
    """H = -sum p log p, p the eigenvalues of the units' covariance over their sum. At most log min(N - 1, F)."""
    return _entropy(_eigenvalues(features.gram))


@_estimator("spectral-correlation")
def spectral_correlation(features: Features) -> float:
    """As spectral, of the units' correlation matrix; a unit that never changes is left out."""
    if features.by_unit:
        scale = 1 / _norms(features.scatter.diagonal())
        correlation = features.scatter * scale
        correlation *= scale[:, None]
        return _entropy(_eigenvalues(correlation))
    scaled = features.centred / _norms(np.square(features.centred).sum(0))
    return _entropy(_eigenvalues(scaled @ scaled.T))


@_estimator("rankme")
def rankme(features: Features) -> float:
    """H = -sum p log p, p the singular values of the features as they are over their sum. At most log min(N, F)."""
    # float64: the mean's singular value dwarfs the others, whose squares float32 would lose
    y = features.values.astype(np.float64)
    squares = _eigenvalues(y.T @ y if features.by_unit else y @ y.T)
    return _entropy(np.sqrt(squares.clip(0)))


@dataclass(frozen=True)
class Entropy:
    """What was measured on one encoder. estimates: from an estimator's name to its value in nats; samples: how many
    outputs were measured; delta: the quantiser's step (eq. 3); states: distinct states seen, None where the joint
    entropy was not asked for."""

    estimates: dict[str, float]
    samples: int
    delta: float
    states: int | None = None


def measure(features: Features, estimators: Iterable[str]) -> Entropy:
    """The estimates that are asked for."""
    estimates = {name: ESTIMATORS[name](features) for name in estimators}
    states = len(features.states) if "joint" in estimates else None
    return Entropy(estimates, len(features.values), features.delta, states)


def _entropy(weights: np.ndarray) -> float:
    """-sum p log p, p the positive weights over their sum; 0 where there are none. Raises RuntimeError for NaN, which
    would otherwise pass for none."""
    if not np.isfinite(weights).all():
        raise RuntimeError("a spectrum came out as NaN or infinity; run again, and report it if it comes back")
    p = weights[weights > 0].astype(np.float64)
    p /= p.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _marginal(codes: np.ndarray) -> float:
    """The sum over the columns of the entropy of a column's values."""
    counts = np.zeros((int(codes.max()) + 1, codes.shape[1]))
    for start in range(0, len(codes), BLOCK):
        block = codes[start : start + BLOCK]
        for code, count in enumerate(counts):
            count += (block == code).view(np.uint8).sum(0, dtype=np.uint8)
    p = counts / len(codes)
    return float(-(p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum()) + 0.0


def _norms(squares: np.ndarray) -> np.ndarray:
    """The units' norms, 1 for a unit of zeros, which can then be divided by it."""
    return np.sqrt(np.where(squares > 0, squares, 1))


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Of a Gram matrix, of which the lower triangle is enough, without the zeros that rows of zeros stand for."""
    from scipy.linalg import eigvalsh  # in float32 nearly twice as fast as NumPy's

    some = matrix.diagonal() > 0
    if not some.all():
        matrix = matrix[np.ix_(some, some)]
    return eigvalsh(matrix.T, lower=False, check_finite=False, driver="evd") if matrix.size else np.zeros(0)
