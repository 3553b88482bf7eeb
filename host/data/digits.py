"""The built-in target task: scikit-learn's handwritten digits (UCI, 1,797 images of 8x8 pixels, CC BY 4.0)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from entropi.host.data.dataset import Dataset, Split

CLASSES = tuple("0123456789")
TEST_SHARE = 0.25


def load(seed: int = 0) -> Dataset:
    """The digits as 3x32x32: bilinear upscaling, 0..16 stretched to 0..255, three equal channels.

    A stratified split into 1,347 training and 450 test images, the same as load_raw's for the same seed."""
    raw = load_raw(seed)
    return Dataset("builtin:digits", CLASSES, _upscale(raw.train), _upscale(raw.test))


def load_raw(seed: int = 0) -> Dataset:
    """The digits as they are, 1x8x8, 0..16 stretched to 0..255."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(np.arange(len(labels)), test_size=TEST_SHARE, stratify=labels, random_state=seed)
    return Dataset("builtin:digits8x8", CLASSES, Split(images[train], labels[train]), Split(images[test], labels[test]))


def _upscale(split: Split) -> Split:
    pixels = torch.from_numpy(split.images).float()
    pixels = F.interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False)
    images = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous().numpy()
    return Split(images, split.labels)
