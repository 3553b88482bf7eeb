"""What a network returns for a set of images, and how often it is right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from entropi.host.data import Split

MEAN, STD = 0.5, 0.5
BATCH = 256


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, C, H, W) to float32 in channels_last: (pixel / 255 - MEAN) / STD."""
    pixels = images.to(torch.float32, memory_format=torch.channels_last)
    return pixels.mul_(1 / (255 * STD)).sub_(MEAN / STD)


def output_batches(module: nn.Module, split: Split, batch: int = BATCH) -> Iterator[np.ndarray]:
    """What the module in evaluation mode returns, batch by batch, as float32 (n, ...)."""
    module.eval()
    first = next(module.parameters(), None)
    device = first.device if first is not None else None
    for start in range(0, len(split), batch):
        with torch.inference_mode():
            images = torch.from_numpy(split.images[start : start + batch]).to(device)
            result = module(normalise(images)).numpy(force=True)
        yield result  # outside, so that the caller's code does not run in inference mode


def outputs(module: nn.Module, split: Split) -> np.ndarray:
    """What the module in evaluation mode returns for a whole split, as float32 (N, ...)."""
    starts = range(0, len(split), BATCH)
    for start, batch in zip(starts, output_batches(module, split, BATCH), strict=True):
        if start == 0:  # one array from the start on, since joining batches would copy them all once more
            values = np.empty((len(split), *batch.shape[1:]), batch.dtype)
        values[start : start + len(batch)] = batch
    return values


def accuracy(model: nn.Module, split: Split) -> float:
    """Top-1 accuracy, between 0 and 1."""
    return top1(outputs(model, split), split.labels)


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows (N, classes) that are largest at their label (N,)."""
    return float((logits.argmax(1) == labels).mean())
