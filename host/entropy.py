"""How much an encoder's output says about a data set: three entropies from one pass over its features, all in nats.

joint     the entropy of the whole quantised output vector (ENTROPI, eq. 5-6); at most log(samples)
marginal  the sum over units of the entropy of one unit's code (eq. 8-9); an upper bound of the joint
spectral  the von Neumann entropy of the feature covariance: -sum p log p over its eigenvalues, normalised to sum 1;
          its exponential is Roy and Vetterli's effective rank; at most log(features)
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

SPOOL_BYTES = 64 * 2**20
MAX_LEVELS = 250


@dataclass(frozen=True)
class Entropy:
    """joint, marginal and spectral in nats; states: distinct output codes seen; delta: the quantiser's step (eq. 3);
    samples: how many outputs were measured."""

    joint: float
    states: int
    marginal: float
    delta: float
    spectral: float
    samples: int


class _Covariance:
    """Mean and scatter matrix of rows that arrive in chunks (Chan, Golub and LeVeque's merging, in float64)."""

    def __init__(self, first: np.ndarray) -> None:
        self.shift = first.astype(np.float64)  # makes a unit that never changes come out as exactly zero
        self.count = 0
        self.mean = np.zeros(len(first))
        self.scatter = np.zeros((len(first), len(first)))

    def add(self, rows: np.ndarray) -> None:
        rows = rows - self.shift
        mean = rows.mean(0)
        rows -= mean
        total = self.count + len(rows)
        gap = mean - self.mean
        self.scatter += rows.T @ rows
        self.scatter += np.outer(gap, gap) * (self.count * len(rows) / total)
        self.mean += gap * (len(rows) / total)
        self.count = total


def measure(features: Iterable[np.ndarray], levels: int = 4) -> Entropy:
    """The entropies of features that arrive in chunks of (n, ...) floats; each chunk is used once.

    `levels` is M of eq. 3. Memory holds the covariance and the distinct states, not the samples: those wait in a
    temporary file for the quantiser's step, which is known only at the end. Raises ValueError for NaN or infinite
    features and for no features at all."""
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"levels is {levels}; the quantiser needs between 1 and {MAX_LEVELS}")
    covariance = None
    low, high, row = np.inf, -np.inf, 0
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES) as spool:
        for chunk in features:
            chunk = np.asarray(chunk, np.float64).reshape(len(chunk), -1)
            if not len(chunk):
                continue
            if not np.isfinite(chunk).all():
                raise ValueError(
                    f"features of sample {row + int((~np.isfinite(chunk)).any(1).argmax())} hold NaN or infinity; "
                    "the encoder is damaged or diverged, so train this rung again"
                )
            covariance = covariance or _Covariance(chunk[0])
            covariance.add(chunk)
            low, high, row = min(low, chunk.min()), max(high, chunk.max()), row + len(chunk)
            np.save(spool, chunk, allow_pickle=False)
        if covariance is None:
            raise ValueError("there are no features to measure; the data set needs at least one sample")
        delta = float((high - low) / levels)
        if delta == 0:
            return Entropy(0.0, 1, 0.0, 0.0, 0.0, covariance.count)
        spool.seek(0)
        joint, states, marginal = _code_entropies(_read(spool, row), low, delta, levels)
    return Entropy(joint, states, marginal, delta, _spectral(covariance.scatter), covariance.count)


def _read(spool: IO[bytes], rows: int) -> Iterator[np.ndarray]:
    while rows:
        chunk = np.load(spool, allow_pickle=False)
        rows -= len(chunk)
        yield chunk


def _code_entropies(chunks: Iterable[np.ndarray], low: float, delta: float, levels: int) -> tuple[float, int, float]:
    """Joint entropy, number of states and marginal entropy of floor(y / delta + 1/2) (eq. 2)."""
    first = np.floor(low / delta + 0.5)
    states: Counter[bytes] = Counter()
    counts = None
    for chunk in chunks:
        codes = (np.floor(chunk / delta + 0.5) - first).astype(np.uint8)
        states.update(hashlib.blake2b(code, digest_size=16).digest() for code in codes)
        seen = np.stack([(codes == code).sum(0) for code in range(levels + 2)])
        counts = seen if counts is None else counts + seen
    joint = _entropy(np.fromiter(states.values(), np.float64))
    marginal = sum(_entropy(unit) for unit in counts.T)
    return joint, len(states), marginal


def _entropy(weights: np.ndarray) -> float:
    """-sum p log p, with p the positive weights over their sum; 0 where there are none."""
    weights = weights[weights > 0]
    p = weights / weights.sum()
    return max(0.0, float(-(p * np.log(p)).sum()))


def _spectral(scatter: np.ndarray) -> float:
    return _entropy(np.linalg.eigvalsh(scatter))
