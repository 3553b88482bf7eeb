"""The records of a device image, field by field as docs/image-format.md has them."""

from __future__ import annotations

import struct

HEADER = struct.Struct("<4sHHIHHHHIIffIIIIb11x")
TENSOR = struct.Struct("<IHHHBBBBbx")
LAYER = struct.Struct("<BBHHHBBBBBBBBHbbIIII")
PADDED, CLIPPED = 0, 1  # windows, in place of how weights are stored
NO_TENSOR = 0xFFFF
