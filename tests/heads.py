"""Images without layers, whose features are their input: a head alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entropi.device import Bundle
from entropi.device.bundle import Preprocessing
from entropi.export.image import Centering, write_image
from entropi.export.integer import Network, Tensor


def any_centering(features: int) -> Centering:
    """Centres -5, -4 ..., scales of 0.5 to 1.75, so that some features are clamped, and a gain of 1 / 400."""
    numbers = np.arange(features)
    return Centering((numbers - 5).astype(np.int8), 1 / 400, (8 + numbers * 5 % 21).astype(np.uint8))


def head_bundle(features: int, centering: Centering | None = None) -> Bundle:
    """A bundle of such an image, with any_centering's centering if none is given."""
    centering = centering or any_centering(features)
    image, _ = write_image(Network({0: Tensor(features, 1, 1, 1.0, 0)}, 0, 0), centering)
    return Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), 1.0, 0))
