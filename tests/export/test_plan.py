"""The memory plan: nothing alive shares bytes, and every window stays inside its border."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import conv_layer, reference, residual_network, write

from entropi.device import Bundle, HeadConfig, HostDevice
from entropi.device.bundle import Preprocessing
from entropi.export.integer import (
    ADD,
    AVERAGE_POOL,
    CONV,
    COPY,
    MAX_POOL,
    MEAN,
    MUL,
    SUB,
    TABLE,
    WINDOWED,
    Layer,
    Network,
    Tensor,
    quantise_multiplier,
)
from entropi.export.plan import ALIGNMENT, borders, plan

ADD_SCALES = tuple(quantise_multiplier(x) for x in (0.5, 0.5, 2 / (1 << 20)))
residual_networks = st.builds(
    residual_network, st.integers(0, 99), st.integers(1, 9), st.integers(2, 14), st.floats(0.05, 1)
)


def draw_axis(draw, size: int, dilated: bool, clipped: bool) -> dict[str, int]:
    """One axis of a window layer: kernel, stride, dilation, padding before, and how many windows there are."""
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    dilation = draw(st.integers(1, 2)) if dilated else 1
    reach = (kernel - 1) * dilation + 1
    pad = draw(st.integers(0 if clipped else max(0, reach - size), reach - clipped))
    behind = max(draw(st.integers(0, reach - clipped)), reach - size - pad)
    out = (size + pad + behind - reach) // stride + 1
    if clipped:  # every window meets the input
        out = min(out, (size + pad - 1) // stride + 1)
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "pad": pad, "out": out}


def window_layer(draw, rng, kind: int, source: int, t: Tensor, number: int) -> tuple[Tensor, Layer]:
    """A convolution or pool of tensor `source`, and its output."""
    clipped = kind != CONV and draw(st.booleans())
    axes = [draw_axis(draw, size, kind == CONV, clipped) for size in t.shape[1:]]
    kernel, stride, dilation, pad, out = (tuple(axis[name] for axis in axes) for name in axes[0])
    if kind != CONV:
        layer = Layer(kind, f"pool{number}", (source,), number, -128, 127, kernel, stride, pad, clipped=clipped)
        return Tensor(t.channels, *out, 0.05, t.zero_point), layer
    groups = draw(st.sampled_from([g for g in (1, 2, t.channels) if t.channels % g == 0]))
    to = Tensor(groups * draw(st.integers(1, 3)), *out, 0.05, int(rng.integers(-100, 100)))
    return to, conv_layer(rng, t, number, to, (source,), kernel, stride, pad, 0.5, dilation, groups)


@st.composite
def skipping_networks(draw) -> Network:
    """Layers of every kind, windows of any size; those of two inputs take any two that go together, near or far."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = {0: Tensor(draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), 0.05, -7)}
    network = Network(tensors, 0, 0)
    for number in range(1, draw(st.integers(1, 7)) + 1):
        source = draw(st.sampled_from(sorted(tensors)))
        t = tensors[source]
        seconds = [i for i, u in tensors.items() if all(n in (1, m) for n, m in zip(u.shape, t.shape, strict=True))]
        kind = draw(st.sampled_from([CONV, CONV, MAX_POOL, AVERAGE_POOL, MEAN, TABLE, COPY, ADD, ADD, SUB, MUL]))
        to = Tensor(*t.shape, 0.05, int(rng.integers(-100, 100)))
        layer = Layer(kind, f"layer{number}", (source,), number, -128, 127)
        if kind in (ADD, SUB, MUL):
            scales = (quantise_multiplier(0.01),) if kind == MUL else ADD_SCALES
            layer = replace(layer, inputs=(source, draw(st.sampled_from(seconds))), scales=scales)
        elif kind == TABLE:
            layer = replace(layer, table=rng.integers(-128, 128, 256).astype(np.int8))
        elif kind == COPY:
            to = Tensor(2 * t.channels, *t.shape[1:], 0.05, t.zero_point)
            network.layers.append(layer)
            layer = replace(layer, first=t.channels)
        elif kind == MEAN:
            to = Tensor(t.channels, 1, 1, 0.05, 3)
            layer = replace(layer, scales=(quantise_multiplier(1 / (t.height * t.width)),))
        else:
            to, layer = window_layer(draw, rng, kind, source, t, number)
        tensors[number] = to
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
        if layer.kind not in WINDOWED or layer.clipped:
            continue
        source, out = network.tensors[layer.inputs[0]], network.tensors[layer.output]
        sides = reached[layer.inputs[0]]
        for axis, (size, count) in enumerate(zip(source.shape[1:], out.shape[1:], strict=True)):
            starts = [o * layer.stride[axis] - layer.pad[axis] for o in range(count)]
            sides[axis] = max(sides[axis], -min(starts))
            sides[axis + 2] = max(sides[axis + 2], max(starts) + layer.extent[axis] - size)
    assert borders(network) == {index: tuple(sides) for index, sides in reached.items()}


@settings(max_examples=80, deadline=None)
@given(network=skipping_networks())
def test_the_runtime_computes_the_definition_on_the_plan(network):
    values = np.random.default_rng(0).integers(-128, 128, network.tensors[0].shape).astype(np.int8)
    bundle = Bundle(Path(), write(network), {}, Preprocessing((0.0,), (1.0,), 1.0, 0))
    device = HostDevice(bundle, "1MiB", head=HeadConfig(2, 1))
    expected = reference(network, values)
    found = device.encode_layers(values)
    for number in network.last_writers().values():
        np.testing.assert_array_equal(found[number], expected[number], err_msg=network.layers[number].name)
    outputs = {0: values} | {layer.output: y for layer, y in zip(network.layers, expected, strict=True)}
    np.testing.assert_array_equal(device.encode(values), outputs[network.output].ravel())


def test_a_chain_takes_the_two_largest_neighbours():
    """Three tensors of 40, 80 and 24 bytes in a row: 40 and 24 share their place beside the 80."""
    tensors = {i: Tensor(n, 1, 1, 0.05, 0) for i, n in enumerate((40, 80, 24))}
    rng = np.random.default_rng(0)
    layers = [conv_layer(rng, tensors[i], i + 1, tensors[i + 1], (i,), (1, 1), (1, 1), (0, 0), 1.0) for i in range(2)]
    places, total = plan(Network(tensors, 0, 2, layers))
    assert {i: p.offset for i, p in places.items()} == {0: 80, 1: 0, 2: 80} and total == 120
