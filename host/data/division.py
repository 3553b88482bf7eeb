"""Which samples are for training and which for testing, as a spec's options say."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from entropi.host.data.dataset import few_shot_indices
from entropi.host.data.samples import Samples, groups
from entropi.host.data.spec import Spec

TEST_SHARE = 0.2


def check(spec: Spec, split: bool, domains: Collection[str]) -> None:
    """Refuse options that such data cannot take: `split` says whether it has a split of its own. Raises ValueError."""
    for option, names in (("domain", spec.domain), ("hold-out", spec.hold_out)):
        if names and not domains:
            raise ValueError(f"{spec}: the data has no domains; leave {option} out")
        for name in names or ():
            if name not in domains:
                raise ValueError(f"{spec}: domain {name!r} is not there; choose from {', '.join(sorted(domains))}")
    if spec.domain and spec.hold_out:
        raise ValueError(f"{spec}: hold-out already says which domains are trained on; leave domain out")
    if spec.hold_out and len(spec.hold_out) == len(domains):
        raise ValueError(f"{spec}: no domain is left to train on; hold out fewer than {len(domains)}")
    why = "hold-out says what is tested on" if spec.hold_out else "the data has a split of its own" if split else None
    if why and spec.test is not None:
        raise ValueError(f"{spec}: {why}; leave test out")
    if why and spec.seed is not None and spec.per_class is None:
        raise ValueError(f"{spec}: {why} and nothing is drawn; leave seed out, or give per-class")


def divide(samples: Samples, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training samples and of the test samples, for options that `check` let pass.

    Raises ValueError where a class has no training sample, or too few, or where there is nothing to test on."""
    seed = spec.seed or 0
    if spec.hold_out:
        test = np.isin(samples.domains, spec.hold_out)
        train = ~test
    elif samples.splits is not None:
        names = set(map(str, samples.splits))
        if "train" not in names or len(names) == 1:
            raise ValueError(f"{spec}: {' and '.join(sorted(names))} is all there is; bring train, and test or val")
        train = samples.splits == "train"
        test = samples.splits == ("test" if "test" in names else "val")
    else:
        share = TEST_SHARE if spec.test is None else spec.test
        test = _drawn(groups(samples.domains, samples.labels), share, seed)
        train = ~test
    if spec.domain:
        chosen = np.isin(samples.domains, spec.domain)
        train, test = train & chosen, test & chosen
    train, test = np.flatnonzero(train), np.flatnonzero(test)
    counts = np.bincount(samples.labels[train], minlength=len(samples.classes))
    wanted, poorest = spec.per_class or 1, counts.argmin()
    count, name = counts[poorest], samples.classes[poorest]
    if count < wanted:
        remedy = f"ask for at most {count} or bring more" if count else "bring some or leave the class out of the data"
        raise ValueError(f"{spec}: class {name!r} has {count} training images and needs {wanted}; {remedy}")
    if not len(test):
        raise ValueError(f"{spec}: no image is left to test on; hold more out with test or bring test images")
    if spec.per_class:
        train = train[few_shot_indices(samples.labels[train], spec.per_class, seed)]
    return train, test


def _drawn(group: np.ndarray, share: float, seed: int) -> np.ndarray:
    """A mask (N,): of every group `share` of its samples at random, rounded, and never all of them."""
    rng = np.random.default_rng(seed)
    drawn = np.zeros(len(group), bool)
    for members in (np.flatnonzero(group == number) for number in np.unique(group)):
        count = min(int(len(members) * share + 0.5), len(members) - 1)
        drawn[rng.permutation(members)[:count]] = True
    return drawn
