"""Small things: sizes as text, the CRC, the sources' discipline."""

from __future__ import annotations

import ctypes as c
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropi.device import toolchain
from entropi.device.library import CSelf, library
from entropi.device.units import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"), [(49152, 49152), ("49152", 49152), ("48KiB", 49152), ("48 kB", 48000), ("1 MiB", 1 << 20)]
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "-4", "1.5KiB", "48 furlongs"])
def test_wrong_sizes_name_the_text(text):
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_crc_is_zlibs_and_can_be_continued(data, cut):
    crc = library().entropi_crc32
    crc.restype = c.c_uint32
    first = crc(c.c_uint32(0), data[:cut], c.c_size_t(len(data[:cut])))
    assert crc(c.c_uint32(first), data[cut:], c.c_size_t(len(data[cut:]))) == zlib.crc32(data)


def test_the_private_struct_is_as_large_as_python_thinks(tmp_path):
    source = tmp_path / "size.c"
    source.write_text('#include "entropi.h"\nint size(void);\nint size(void) { return (int)sizeof(entropi); }\n')
    built = toolchain.build_shared("size", (source,))
    assert c.CDLL(str(built)).size() == c.sizeof(CSelf)


def test_a_compile_error_is_the_compilers(tmp_path):
    source = tmp_path / "wrong.c"
    source.write_text("int f(void) { return undeclared; }\n")
    with pytest.raises(toolchain.ToolchainError, match="undeclared"):
        toolchain.build_shared("wrong", (source,))
