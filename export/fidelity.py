"""How close the features of a quantised network are to those of the original."""

from __future__ import annotations

import numpy as np


def cosine(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Cosine between two sets of features, real numbers [N, F] each, image by image: its mean and its smallest.

    Where the expected features are all zero, it is 1 if the found ones are too and 0 if not.
    """
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    same = np.where((found == expected).all(axis=1), 1.0, 0.0)
    values = np.divide((found * expected).sum(axis=1), norms, out=same, where=norms > 0)
    return {"mean": float(values.mean()), "min": float(values.min())}
