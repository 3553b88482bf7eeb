"""Features of several classes, of very different deviations and offsets."""

import numpy as np


def blobs(seed: int, classes: int, samples: int = 240, features: int = 6):
    rng = np.random.default_rng(seed)
    labels = np.arange(samples) % classes
    centres = rng.normal(0, 3, (classes, features))
    spread = rng.uniform(0.1, 10, features)
    points = (centres[labels] + rng.normal(0, 1, (samples, features))) * spread + rng.normal(0, 5, features)
    return points.astype(np.float32), labels.astype(np.int64)
