"""Images without layers, whose features are their input: a head alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from entropi.device import Bundle
from entropi.device.bundle import Preprocessing
from entropi.export.image import Centering, write_image
from entropi.export.integer import Network, Tensor


def head_bundle(features: int, centering: Centering | None = None) -> Bundle:
    """A bundle of such an image; without `centering`, features are centred around -5, -4 ... and divided by 400."""
    centering = centering or Centering(np.arange(features).astype(np.int8) - 5, 1 / 400)
    image, _ = write_image(Network({0: Tensor(features, 1, 1, 1.0, 0)}, 0, 0), centering)
    return Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), 1.0, 0))
