"""What the C runtime accepts as an image, and that it computes what the definition says."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import conv_layer, reference, residual_network, write

from entropi.device import Bundle, DeviceError, HeadConfig, HostDevice, describe
from entropi.device.bundle import Preprocessing
from entropi.export.integer import Network, Tensor


@pytest.fixture
def network() -> Network:
    return residual_network(seed=1)


def open_image(image: bytes) -> HostDevice:
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,) * 3, (1.0,) * 3, 1 / 255, -128))
    return HostDevice(bundle, "1MiB", head=HeadConfig(classes=2, batch=1))


def resealed(image: bytes) -> bytes:
    return image[:-4] + zlib.crc32(image[:-4]).to_bytes(4, "little")


@pytest.mark.parametrize("seed", range(4))
def test_every_layer_is_what_the_definition_says(seed):
    network = residual_network(seed, channels=4 + seed, size=8 + 3 * seed, density=(0.05, 0.3, 0.6, 1.0)[seed])
    device = open_image(write(network))
    for values in np.random.default_rng(seed).integers(-128, 128, (3, *network.tensors[0].shape)).astype(np.int8):
        found, expected = device.encode_layers(values), reference(network, values)
        for number in network.last_writers().values():
            np.testing.assert_array_equal(found[number], expected[number], err_msg=network.layers[number].name)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_convolutions_of_any_shape(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pad = draw(st.tuples(st.integers(0, kernel[0] - 1), st.integers(0, kernel[1] - 1)))
    size = draw(st.tuples(st.integers(kernel[0], 18), st.integers(kernel[1], 18)))
    out_size = [(n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, pad, kernel, stride, strict=True)]
    groups = draw(st.sampled_from([1, 1, 2, 7]))
    source = Tensor(groups * draw(st.integers(1, 40 // groups)), *size, 0.05, draw(st.integers(-128, 127)))
    out = Tensor(groups * draw(st.integers(1, 5)), *out_size, 0.05, draw(st.integers(-128, 127)))
    density = draw(st.sampled_from([0.0, 0.004, 0.05, 0.4, 1.0]))
    layer = conv_layer(rng, source, 1, out, (0,), kernel, stride, pad, density, groups=groups)
    network = Network({0: source, 1: out}, 0, 1, [layer])
    values = rng.integers(-128, 128, source.shape).astype(np.int8)
    np.testing.assert_array_equal(open_image(write(network)).encode_layers(values)[0], reference(network, values)[0])


def test_any_flipped_byte_is_refused(network):
    image = write(network)
    assert describe(image).layers == len(network.layers)
    for at in range(len(image)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(image)
            damaged[at] ^= flip
            with pytest.raises(DeviceError) as refused:
                describe(bytes(damaged))
            assert refused.value.status in ("E_IMAGE", "E_VERSION")


def test_truncated_and_extended_images_are_refused(network):
    image = write(network)
    for wrong in (b"", image[:3], image[:60], image[:-1], image + b"\0"):
        with pytest.raises(DeviceError, match="E_IMAGE"):
            describe(wrong)


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_hostile_image_is_refused_or_harmless(changes):
    """A valid CRC over nonsense: whatever describe lets through must run inside the arena."""
    network = residual_network(seed=2, channels=3, size=6)
    image = bytearray(write(network))
    for at, value in changes:
        image[at % (len(image) - 4)] = value
    image = resealed(bytes(image))
    try:
        device = open_image(image)
    except DeviceError:
        return
    info = device.info
    device.encode(np.zeros((info.channels, info.height, info.width), np.int8))


def test_a_wrong_input_length_is_refused(network):
    with pytest.raises(DeviceError, match="E_ARGUMENT"):
        open_image(write(network)).encode(np.zeros((3, 5, 5), np.int8))
