"""The memory plan: nothing alive shares bytes, and every window stays inside its border."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import conv_layer, reference, residual_network, write

from entropi.device import Bundle, HeadConfig, HostDevice
from entropi.device.bundle import Preprocessing
from entropi.export.integer import ADD, CONV, MAX_POOL, MEAN, Layer, Network, Tensor, quantise_multiplier
from entropi.export.plan import ALIGNMENT, borders, plan

ADD_SCALES = tuple(quantise_multiplier(x) for x in (0.5, 0.5, 2 / (1 << 20)))
residual_networks = st.builds(
    residual_network, st.integers(0, 99), st.integers(1, 9), st.integers(2, 14), st.floats(0.05, 1)
)


@st.composite
def skipping_networks(draw) -> Network:
    """A chain of convolutions and pools of any window, with sums of any two tensors of one shape, near or far."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = {0: Tensor(draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), 0.05, -7)}
    network = Network(tensors, 0, 0)
    for number in range(1, draw(st.integers(1, 7)) + 1):
        source = draw(st.sampled_from(sorted(tensors)))
        t = tensors[source]
        twins = [i for i, other in tensors.items() if other.shape == t.shape and i != source]
        kind = draw(st.sampled_from([CONV, CONV, MAX_POOL, MEAN] + [ADD] * 4 * bool(twins)))
        if kind == ADD:
            tensors[number] = Tensor(*t.shape, 0.05, int(rng.integers(-100, 100)))
            inputs = (source, draw(st.sampled_from(twins)))
            layer = Layer(ADD, f"add{number}", inputs, number, -128, 127, scales=ADD_SCALES)
        elif kind == MEAN:
            tensors[number] = Tensor(t.channels, 1, 1, 0.05, 3)
            scales = (quantise_multiplier(1 / (t.height * t.width)),)
            layer = Layer(MEAN, f"mean{number}", (source,), number, -128, 127, scales=scales)
        else:
            stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
            kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
            pad = tuple(draw(st.integers(max(0, k - n), k)) for k, n in zip(kernel, t.shape[1:], strict=True))
            behind = tuple(draw(st.integers(0, k)) for k in kernel)
            size = [
                (n + p + q - k) // s + 1 for n, p, q, k, s in zip(t.shape[1:], pad, behind, kernel, stride, strict=True)
            ]
            channels = draw(st.integers(1, 5)) if kind == CONV else t.channels
            zero_point = int(rng.integers(-100, 100)) if kind == CONV else t.zero_point
            tensors[number] = Tensor(channels, *size, 0.05, zero_point)
            if kind == CONV:
                layer = conv_layer(rng, t, number, tensors[number], (source,), kernel, stride, pad, 0.5)
            else:
                layer = Layer(MAX_POOL, f"pool{number}", (source,), number, -128, 127, kernel, stride, pad)
        network.layers.append(layer)
    network.output = draw(st.sampled_from(sorted(tensors)))
    return network


def alive_at(network: Network, step: int) -> set[int]:
    """Tensors whose bytes matter while layer `step` runs: what it reads and writes, and what is read later."""
    written = {network.input} | {layer.output for layer in network.layers[: step + 1]}
    read_later = {network.output} | {i for layer in network.layers[step:] for i in layer.inputs}
    return written & read_later | {network.layers[step].output}


@settings(max_examples=150, deadline=None)
@given(network=st.one_of(residual_networks, skipping_networks()))
def test_nothing_alive_shares_bytes(network):
    places, total = plan(network)
    assert total == max(p.offset + p.bytes for p in places.values())
    most = 0
    for step in range(len(network.layers)):
        alive = sorted((places[i].offset, places[i].bytes) for i in alive_at(network, step))
        for (offset, size), (following, _) in zip(alive, alive[1:], strict=False):
            assert offset + size <= following
        most = max(most, sum(size for _, size in alive))
    assert total >= most
    for index, place in places.items():
        t, (top, left, bottom, right) = network.tensors[index], place.border
        assert place.bytes == t.channels * (top + t.height + bottom) * (left + t.width + right)
        assert place.offset % ALIGNMENT == 0


@settings(max_examples=150, deadline=None)
@given(network=st.one_of(residual_networks, skipping_networks()))
def test_borders_are_as_wide_as_the_windows_and_no_wider(network):
    reached = {index: [0, 0, 0, 0] for index in network.tensors}
    for layer in network.layers:
        if layer.kind not in (CONV, MAX_POOL):
            continue
        source, out = network.tensors[layer.inputs[0]], network.tensors[layer.output]
        sides = reached[layer.inputs[0]]
        for axis, (size, count) in enumerate(zip(source.shape[1:], out.shape[1:], strict=True)):
            starts = [o * layer.stride[axis] - layer.pad[axis] for o in range(count)]
            sides[axis] = max(sides[axis], -min(starts))
            sides[axis + 2] = max(sides[axis + 2], max(starts) + layer.kernel[axis] - size)
    assert borders(network) == {index: tuple(sides) for index, sides in reached.items()}


@settings(max_examples=80, deadline=None)
@given(network=skipping_networks())
def test_the_runtime_computes_the_definition_on_the_plan(network):
    values = np.random.default_rng(0).integers(-128, 128, network.tensors[0].shape).astype(np.int8)
    bundle = Bundle(Path(), write(network), {}, Preprocessing((0.0,), (1.0,), 1.0, 0))
    device = HostDevice(bundle, "1MiB", head=HeadConfig(2, 1))
    expected = reference(network, values)
    for layer, found, wanted in zip(network.layers, device.encode_layers(values), expected, strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=layer.name)
    outputs = {0: values} | {layer.output: y for layer, y in zip(network.layers, expected, strict=True)}
    np.testing.assert_array_equal(device.encode(values), outputs[network.output].ravel())


def test_a_chain_takes_the_two_largest_neighbours():
    """Three tensors of 40, 80 and 24 bytes in a row: 40 and 24 share their place beside the 80."""
    tensors = {i: Tensor(n, 1, 1, 0.05, 0) for i, n in enumerate((40, 80, 24))}
    rng = np.random.default_rng(0)
    layers = [conv_layer(rng, tensors[i], i + 1, tensors[i + 1], (i,), (1, 1), (1, 1), (0, 0), 1.0) for i in range(2)]
    places, total = plan(Network(tensors, 0, 2, layers))
    assert {i: p.offset for i, p in places.items()} == {0: 80, 1: 0, 2: 80} and total == 120
