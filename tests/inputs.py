"""Inputs that reach an integer network's limits."""

from __future__ import annotations

import numpy as np


def extremes(shape: tuple[int, ...]) -> np.ndarray:
    """int8 [N, C, H, W]: the smallest and the largest value everywhere, alternating by position and by channel, and one
    of either alone among the other, first, in the middle and last."""
    board = np.indices(shape).sum(axis=0) % 2
    stripes = np.broadcast_to(np.arange(shape[0])[:, None, None] % 2, shape)
    spikes = np.zeros((3, *shape), int)
    for spike, place in zip(spikes, (0, spikes[0].size // 2, -1), strict=True):
        spike.flat[place] = 1
    high = np.stack([0 * board, board, stripes, *spikes])
    return np.concatenate([np.where(high, 127, -128), np.where(high, -128, 127)]).astype(np.int8)
