"""Many images at once give the bytes that they give one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import KINDS, SOFTMAX, opened, reference, residual_network, skipping_networks

from entropi.device import HostDevice
from entropi.export.integer import CONV, Layer, Network, Tensor, quantise_multiplier


def one_by_one(device: HostDevice, values: np.ndarray) -> np.ndarray:
    return np.stack([device.encode(v) for v in values])


def inputs(network, count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(-128, 128, (count, *network.tensors[0].shape)).astype(np.int8)


@settings(max_examples=150, deadline=None)
@given(network=skipping_networks((*KINDS, SOFTMAX)), optimize=st.sampled_from(["size", "speed"]))
def test_networks_of_every_kind_of_layer(network, optimize):
    """Windows of any size, inside borders and beyond them; tensors that share bytes."""
    device, values = opened(network, optimize), inputs(network, 3)
    np.testing.assert_array_equal(device.encode_batch(values, 1), one_by_one(device, values))


@pytest.mark.parametrize("optimize", ["size", "speed"])
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_what_the_definition_says(density, optimize):
    network = residual_network(seed=7, channels=8, size=16, density=density)
    values = inputs(network, 4)
    expected = [reference(network, v)[-1].ravel() for v in values]
    np.testing.assert_array_equal(opened(network, optimize).encode_batch(values), expected)


@pytest.mark.parametrize("weight", [-128, -127, 127])
@pytest.mark.parametrize("value", [-128, 127])
def test_the_largest_products(weight, value):
    """They are summed in 16 bits, as many at a time as is exact."""
    weights = np.full((2, 9, 1, 1), weight, np.int8)
    scales = (quantise_multiplier(100 / (9 * 128 * 128)),) * 2
    layer = Layer(CONV, "conv", (0,), 1, -128, 127, scales=scales, weight=weights, bias=np.zeros(2, np.int64))
    network = Network({0: Tensor(9, 2, 1, 0.05, 0), 1: Tensor(2, 2, 1, 0.05, 0)}, 0, 1, [layer])
    values = np.full((1, 9, 2, 1), value, np.int8)
    np.testing.assert_array_equal(opened(network).encode_batch(values)[0], reference(network, values[0])[-1].ravel())


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize("threads", [None, 1, 3])
def test_any_number_of_images_and_threads(count, threads):
    network = residual_network(seed=2)
    device, values = opened(network), inputs(network, count)
    features = device.encode_batch(values, threads)
    assert (features.dtype, features.shape) == (np.int8, (count, device.info.features))
    np.testing.assert_array_equal(features, one_by_one(device, values) if count else features)


def test_the_head_stays_as_it_is():
    network = residual_network(seed=2)
    device, values = opened(network), inputs(network, 5)
    device.learn_features(device.encode(values[0]), 1)
    before = device.head()
    device.encode_batch(values)
    np.testing.assert_array_equal(device.head(), before)


@pytest.mark.parametrize(("shape", "threads", "message"), [
    ((4, 3, 9, 8), 1, r"inputs of shape \[4, 3, 9, 8\]; this encoder takes \[N, 3, 9, 9\]"),
    ((3, 9, 9), 1, r"inputs of shape \[3, 9, 9\]; this encoder takes \[N, 3, 9, 9\]"),
    ((4, 3, 9, 9), 0, "threads 0 is below 1"),
])  # fmt: skip
def test_bad_input(shape, threads, message):
    with pytest.raises(ValueError, match=message):
        opened(residual_network(seed=2)).encode_batch(np.zeros(shape, np.int8), threads)
