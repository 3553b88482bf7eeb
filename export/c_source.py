"""The image as C, for firmware that links it: entropi_image.c and entropi_image.h."""

from __future__ import annotations

import numpy as np

from entropi.device.library import describe, measure
from entropi.device.session import HeadConfig

_BYTES_A_LINE = 24


def c_source(image: bytes) -> str:
    """A const array that the linker puts into flash."""
    lines = [image[i : i + _BYTES_A_LINE] for i in range(0, len(image), _BYTES_A_LINE)]
    body = "\n".join("    " + ", ".join(map(str, line)) + "," for line in lines)
    return f'#include "entropi_image.h"\n\nconst uint8_t entropi_image[ENTROPI_IMAGE_BYTES] = {{\n{body}\n}};\n'


def c_header(image: bytes) -> str:
    """What a firmware needs at compile time, as macros, read by the runtime from the image itself.

    Raises DeviceError (E_IMAGE, E_VERSION).
    """
    info = describe(image)
    encoder = measure(image, HeadConfig(classes=2)).encoder
    return f"""#ifndef ENTROPI_IMAGE_H
#define ENTROPI_IMAGE_H

#include "entropi.h"

#ifdef __cplusplus
extern "C" {{
#endif

#define ENTROPI_IMAGE_BYTES {len(image)}u
#define ENTROPI_IMAGE_FEATURES {info.features}u
#define ENTROPI_IMAGE_CHANNELS {info.channels}u
#define ENTROPI_IMAGE_HEIGHT {info.height}u
#define ENTROPI_IMAGE_WIDTH {info.width}u
#define ENTROPI_IMAGE_INPUT_BYTES {info.channels * info.height * info.width}u

/* int8 input = real input / scale + zero point */
#define ENTROPI_IMAGE_INPUT_SCALE {np.float32(info.input_scale)!s}f
#define ENTROPI_IMAGE_INPUT_ZERO_POINT ({info.input_zero_point})

/* Bytes of arena: for encoding alone, and as entropi_measure says with a head, as a constant expression. */
#define ENTROPI_IMAGE_ENCODER_BYTES {encoder}u
#define ENTROPI_IMAGE_ARENA_BYTES(classes, batch, bytes_per_parameter, replay) \\
    ENTROPI_ARENA_BYTES(ENTROPI_IMAGE_FEATURES, ENTROPI_IMAGE_ENCODER_BYTES, classes, batch, bytes_per_parameter, \\
                        replay)

extern const uint8_t entropi_image[ENTROPI_IMAGE_BYTES];

#ifdef __cplusplus
}}
#endif
#endif
"""
