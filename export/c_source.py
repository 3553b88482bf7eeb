"""The image as C, for firmware that links it: entropi_image.c and entropi_image.h."""

from __future__ import annotations

from entropi.device.library import describe

_BYTES_A_LINE = 24


def c_source(image: bytes) -> str:
    """A const array that the linker puts into flash."""
    lines = [image[i : i + _BYTES_A_LINE] for i in range(0, len(image), _BYTES_A_LINE)]
    body = "\n".join("    " + ", ".join(map(str, line)) + "," for line in lines)
    return f'#include "entropi_image.h"\n\nconst uint8_t entropi_image[ENTROPI_IMAGE_BYTES] = {{\n{body}\n}};\n'


def c_header(image: bytes) -> str:
    """Sizes as macros, read by the runtime from the image itself."""
    info = describe(image)
    return f"""#ifndef ENTROPI_IMAGE_H
#define ENTROPI_IMAGE_H

#include <stdint.h>

#define ENTROPI_IMAGE_BYTES {len(image)}u
#define ENTROPI_IMAGE_FEATURES {info.features}u
#define ENTROPI_IMAGE_CHANNELS {info.channels}u
#define ENTROPI_IMAGE_HEIGHT {info.height}u
#define ENTROPI_IMAGE_WIDTH {info.width}u

extern const uint8_t entropi_image[ENTROPI_IMAGE_BYTES];

#endif
"""
