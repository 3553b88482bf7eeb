"""Removal of channels: what stays computes the same bytes, and what can go without changing one goes."""

from __future__ import annotations

from dataclasses import replace

import networks
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ADD_SCALES, KINDS, conv_layer, opened, reference, skipping_networks, window_layer

from entropi.export.integer import (
    ADD,
    AVERAGE_POOL,
    CONV,
    COPY,
    MAX_POOL,
    MEAN,
    MUL,
    SOFTMAX,
    SUB,
    TABLE,
    Layer,
    Network,
    Tensor,
    quantise_multiplier,
    requantise,
)
from entropi.export.removal import Removed, Saving, remove
from entropi.export.softmax import exponentials

NOTHING = Saving(0, 0, 0, 0, 0)


def inputs(network: Network) -> list[np.ndarray]:
    """Random ones, and nothing but -128 and 127."""
    shape = network.tensors[network.input].shape
    rng = np.random.default_rng(0)
    return [*rng.integers(-128, 128, (2, *shape)).astype(np.int8), np.full(shape, -128, np.int8), np.full(shape, 127)]


def check(network: Network, compute=reference) -> tuple[Network, Removed]:
    """Remove what can go; every tensor that is left holds its channels' old bytes on the device."""
    smaller, removed = remove(network)
    assert set(removed.channels) == set(smaller.tensors)
    for index, t in smaller.tensors.items():
        assert t == replace(network.tensors[index], channels=len(removed.channels[index]))
    for index in (network.input, network.output):
        assert smaller.tensors[index] == network.tensors[index]
    device = opened(smaller)
    for values in inputs(network):
        before = compute(network, values)
        expected = {i: before[number] for i, number in network.last_writers().items()}
        found = device.encode_layers(values)
        for index, number in smaller.last_writers().items():
            np.testing.assert_array_equal(found[number], expected[index][removed.channels[index]])
    return smaller, removed


def count(network: Network) -> int:
    return sum(t.channels for t in network.tensors.values())


def reach(layer: Layer) -> np.ndarray:
    """The largest sum of each row."""
    return abs(layer.bias.astype(np.int64)) + 128 * abs(layer.weight.astype(np.int64)).sum(axis=(1, 2, 3))


def pruned(network: Network, seed: int) -> Network:
    """With few, many or all rows and columns of each convolution emptied, and biases that are large or give the zero
    point."""
    rng = np.random.default_rng(seed)
    layers = []
    for layer in network.layers:
        if layer.kind == CONV:
            weight, bias = layer.weight.copy(), layer.bias.copy()
            weight[rng.random(len(weight)) < rng.choice([0, 0.4, 1])] = 0
            weight[:, rng.random(weight.shape[1]) < rng.choice([0, 0.4, 0.8])] = 0
            dead = ~weight.any(axis=(1, 2, 3))
            bias[dead & (rng.random(len(weight)) < 0.6)] = 0
            bias[rng.random(len(weight)) < 0.1] -= 10**6
            layer = replace(layer, weight=weight, bias=bias)
        layers.append(layer)
    return replace(network, layers=layers)


@settings(max_examples=150, deadline=None)
@given(network=skipping_networks(KINDS), seed=st.integers(0, 2**32))
def test_what_stays_is_what_it_was(network, seed):
    network = pruned(network, seed)
    smaller, removed = check(network)
    assert removed.constant.channels + removed.unread.channels == count(network) - count(smaller)
    convolutions = {layer.output: layer for layer in network.layers if layer.kind == CONV}
    for layer in smaller.layers:
        if layer.kind == CONV:
            assert (reach(layer) <= reach(convolutions[layer.output])[removed.channels[layer.output]]).all()
    again, nothing = remove(smaller)
    assert nothing.constant == nothing.unread == nothing.folded == NOTHING and not nothing.layers
    assert again.tensors == smaller.tensors


@st.composite
def sandwiches(draw, kind: int) -> Network:
    """A layer of `kind` between pruned convolutions, the last one 3x3 and padded."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size, zero_points = draw(st.integers(1, 5)), draw(st.tuples(*[st.sampled_from([-128, -7, 60, 127])] * 5))
    shapes = [(2, size, size), (3, size, size), (3, size, size)]
    tensors = {i: Tensor(*shape, 0.05, zero_points[i]) for i, shape in enumerate(shapes)}
    layers = [conv_layer(rng, tensors[0], i, tensors[i], (0,), (1, 1), (1, 1), (0, 0), 1.0) for i in (1, 2)]
    if kind in (CONV, MAX_POOL, AVERAGE_POOL):
        tensors[3], layer = window_layer(draw, rng, kind, 1, tensors[1], 3)
    else:
        tensors[3] = replace(tensors[1], zero_point=zero_points[3])
        layer = Layer(kind, "layer3", (1,), 3, -128, 127)
        if kind == TABLE:
            layer = replace(layer, table=rng.integers(-128, 128, 256).astype(np.int8))
        elif kind == MEAN:
            tensors[3] = replace(tensors[3], height=1, width=1)
            layer = replace(layer, scales=(quantise_multiplier(draw(st.floats(0.3, 2)) / size**2),))
        else:
            scales = (quantise_multiplier(0.01),) if kind == MUL else ADD_SCALES
            layer = replace(layer, inputs=(1, 2), scales=scales)
    tensors[4] = Tensor(3, *tensors[3].shape[1:], 0.05, zero_points[4])
    last = conv_layer(rng, tensors[3], 4, tensors[4], (3,), (3, 3), (1, 1), (1, 1), 1.0)
    sandwich = pruned(Network(tensors, 0, 4, [*layers, layer]), draw(st.integers(0, 2**32)))
    return replace(sandwich, layers=[*sandwich.layers, last])


@pytest.mark.parametrize("kind", [CONV, MAX_POOL, AVERAGE_POOL, ADD, SUB, MUL, TABLE, MEAN])
def test_constants_of_every_kind_of_layer(kind):
    @settings(max_examples=80, deadline=None)
    @given(network=sandwiches(kind))
    def run(network):
        check(network)

    run()


@settings(max_examples=300, deadline=None)
@given(
    sums=st.lists(st.integers(-(2**31) + 2**30, 2**30), min_size=1),
    multiplier=st.integers(2**30, 2**31 - 1),
    shift=st.integers(-31, 0),
)
def test_sums_are_scaled_as_on_the_device(sums, multiplier, shift):
    x = np.array(sums, np.int64)
    np.testing.assert_array_equal(requantise(x, multiplier, shift), networks.requantise(x, multiplier, shift))


class Maker:
    """A network made layer by layer. Convolutions have weights of 1 to 9, so that none is without effect; `weight` and
    `bias` may be changed before the network is used."""

    def __init__(self, channels: int, size: int, zero_point: int = -10):
        self.rng = np.random.default_rng(0)
        self.network = Network({0: Tensor(channels, size, size, 0.05, zero_point)}, 0, 0)

    def _append(self, kind: int, sources: tuple[int, ...], to: Tensor, **fields) -> int:
        number = len(self.network.tensors)
        self.network.tensors[number] = to
        self.network.layers.append(Layer(kind, f"layer{number}", sources, number, -128, 127, **fields))
        self.network.output = number
        return number

    def conv(self, source: int, channels: int, kernel: int = 1, pad: int = 0, groups: int = 1) -> int:
        t = self.network.tensors[source]
        weight = self.rng.integers(1, 10, (channels, t.channels // groups, kernel, kernel)).astype(np.int8)
        bias = self.rng.integers(-9, 10, channels)
        size = t.height + 2 * pad - kernel + 1
        scale = quantise_multiplier(0.2 / weight[0].size)
        window = {"kernel": (kernel, kernel), "pad": (pad, pad), "groups": groups}
        fields = {"weight": weight, "bias": bias, "scales": (scale,) * channels, **window}
        return self._append(CONV, (source,), replace(t, channels=channels, height=size, width=size), **fields)

    def kill(self, number: int, *rows: int, value: int | None = None) -> None:
        """Empty rows of the convolution that writes tensor `number`; they give `value`, the zero point by default."""
        layer = next(layer for layer in self.network.layers if layer.output == number)
        t = self.network.tensors[number]
        multiplier, shift = layer.scales[0]
        layer.weight[list(rows)] = 0
        layer.bias[list(rows)] = (
            0 if value is None else round((value - t.zero_point) * 2.0 ** (31 - shift) / multiplier)
        )

    def ignore(self, number: int, *columns: int) -> None:
        """Empty columns of the convolution that writes tensor `number`."""
        next(layer for layer in self.network.layers if layer.output == number).weight[:, list(columns)] = 0

    def two(self, kind: int, a: int, b: int) -> int:
        scales = ADD_SCALES if kind == ADD else (quantise_multiplier(0.02),)
        return self._append(kind, (a, b), self.network.tensors[a], scales=scales)

    def table(self, source: int, table: np.ndarray | None = None) -> int:
        """By default a ReLU."""
        t = self.network.tensors[source]
        relu = np.maximum(np.arange(-128, 128), t.zero_point).astype(np.int8)
        return self._append(TABLE, (source,), t, table=relu if table is None else table)

    def mean(self, source: int) -> int:
        t = self.network.tensors[source]
        scale = quantise_multiplier(1 / (t.height * t.width))
        return self._append(MEAN, (source,), replace(t, height=1, width=1), scales=(scale,))

    def concatenation(self, *sources: int) -> int:
        parts = [self.network.tensors[i] for i in sources]
        number = len(self.network.tensors)
        first = 0
        for source, part in zip(sources, parts, strict=True):
            self.network.layers.append(Layer(COPY, "cat", (source,), number, -128, 127, first=first))
            first += part.channels
        self.network.tensors[number] = replace(parts[0], channels=first)
        self.network.output = number
        return number

    def kept(self, **fields) -> dict[int, list[int]]:
        """The channels that are left, of all tensors, after the bytes proved to be the same."""
        _, removed = check(self.network, **fields)
        return {index: channels.tolist() for index, channels in removed.channels.items()}


def test_a_dead_channel_at_the_zero_point_goes_even_under_a_border():
    m = Maker(2, 5)
    a = m.conv(0, 4, 3, pad=1)
    m.kill(a, 1, 3)
    m.conv(a, 3, 3, pad=1)
    assert m.kept() == {0: [0, 1], a: [0, 2], 2: [0, 1, 2]}


@pytest.mark.parametrize(("kernel", "pad", "goes"), [(1, 0, True), (3, 0, True), (3, 1, False)])
def test_another_constant_goes_only_where_no_border_is_mixed_into_it(kernel, pad, goes):
    m = Maker(2, 5)
    a = m.conv(0, 3)
    m.kill(a, 1, value=50)
    m.conv(a, 2, kernel, pad)
    assert m.kept()[a] == ([0, 2] if goes else [0, 1, 2])


def test_a_constant_goes_where_the_weights_at_the_border_are_zero():
    m = Maker(2, 5)
    a = m.conv(0, 3)
    m.kill(a, 1, value=50)
    b = m.conv(a, 2, 3, pad=1)
    centre = m.network.layers[-1].weight[:, 1, 1, 1].copy()
    m.network.layers[-1].weight[:, 1] = 0
    m.network.layers[-1].weight[:, 1, 1, 1] = centre
    assert m.kept()[a] == [0, 2]
    _, removed = remove(m.network)
    assert removed.constant == Saving(1, 2 + 2 * 9, 2, 9, 25) and removed.channels[b].tolist() == [0, 1]


def test_constants_pass_through_tables_pools_and_means():
    m = Maker(2, 6)
    a = m.conv(0, 4)
    m.kill(a, 0, 2, value=60)
    pool = m._append(MAX_POOL, (m.table(a),), replace(m.network.tensors[a], height=3, width=3), kernel=(3, 3),
                     stride=(2, 2), pad=(1, 1))  # fmt: skip
    m.conv(m.mean(pool), 3)
    assert m.kept() == {0: [0, 1], 1: [1, 3], 2: [1, 3], 3: [1, 3], 4: [1, 3], 5: [0, 1, 2]}


def test_a_window_of_nothing_but_border_is_not_the_constant():
    m = Maker(2, 3)
    a = m.conv(0, 3)
    m.kill(a, 1, value=60)
    wide = replace(m.network.tensors[a], height=5, width=5)
    m.conv(m._append(MAX_POOL, (a,), wide, pad=(1, 1)), 2)
    assert m.kept()[a] == [0, 1, 2]


def test_a_channel_that_is_never_active_is_constant():
    """Its weights are not zero, but no input lifts it above the ReLU."""
    m = Maker(2, 4)
    a = m.conv(0, 3)
    m.network.layers[-1].bias[1] = -(10**5)
    m.conv(m.table(a), 2, 3, pad=1)
    assert m.kept()[a] == [0, 2]


def test_constant_features_stay_and_cost_no_weights():
    m = Maker(3, 4)
    m.conv(m.mean(0), 4)
    m.network.layers[-1].bias[2] = 10**6
    smaller, removed = check(m.network)
    assert removed.folded == Saving(0, 0, 3, 0, 0) and removed.channels[2].tolist() == [0, 1, 2, 3]
    assert not smaller.layers[-1].weight[2].any() and smaller.layers[-1].weight[[0, 1, 3]].all()


def test_what_nobody_reads_goes_with_what_only_it_reads():
    m = Maker(2, 4)
    a = m.conv(0, 3)
    m.conv(a, 3)
    m.network.layers[-1].weight[:, 2] = 0  # channel 2 of a is read by row 1 alone
    m.network.layers[-1].weight[1, 2] = 5
    m.conv(m.table(2), 2)
    m.ignore(4, 1)
    kept = m.kept()
    assert kept == {0: [0, 1], a: [0, 1], 2: [0, 2], 3: [0, 2], 4: [0, 1]}
    _, removed = remove(m.network)
    assert removed.constant == NOTHING and removed.unread == Saving(3, 2 + 3 + 2 + 2, 2 + 3, 18, 48)


def test_channels_that_are_added_go_together_or_not_at_all():
    m = Maker(2, 4)
    a, b = m.conv(0, 4), m.conv(0, 4)
    total = m.two(ADD, a, b)
    m.kill(a, 0, 1)
    m.kill(b, 1, 2)
    m.conv(total, 2, 3, pad=1)
    m.ignore(4, 3)
    assert m.kept() == {0: [0, 1], a: [0, 2], b: [0, 2], total: [0, 2], 4: [0, 1]}


def test_a_skip_that_is_read_elsewhere_keeps_its_channels():
    m = Maker(2, 4)
    a = m.conv(0, 4)
    b = m.conv(a, 4)
    m.kill(b, 0, 1, 2, 3)
    m.conv(m.two(ADD, a, b), 2)
    m.ignore(4, 0, 1)
    m.ignore(b, 0)
    assert m.kept()[3] == [2, 3]
    m.conv(m.concatenation(4, a), 2)
    assert m.kept()[3] == [0, 1, 2, 3]


def test_a_concatenation_closes_up():
    m = Maker(2, 4)
    a, b = m.conv(0, 3), m.conv(0, 3)
    m.kill(a, 1)
    m.kill(b, 0, 2)
    m.conv(m.concatenation(a, b), 2, 3, pad=1)
    assert m.kept() == {0: [0, 1], a: [0, 2], b: [1], 3: [0, 2, 4], 4: [0, 1]}
    smaller, _ = remove(m.network)
    assert [layer.first for layer in smaller.layers if layer.kind == COPY] == [0, 2]


def test_a_part_of_a_concatenation_goes_with_its_layers():
    m = Maker(2, 4)
    a, b = m.conv(0, 3), m.conv(0, 3)
    m.kill(b, 0, 1, 2)
    m.conv(m.concatenation(a, b), 2)
    smaller, removed = check(m.network)
    assert set(removed.channels) == {0, a, 3, 4} and removed.layers == ("layer2", "cat")
    assert [layer.output for layer in smaller.layers] == [a, 3, 4]


def test_groups_go_as_a_whole():
    m = Maker(2, 4)
    a = m.conv(0, 6)
    b = m.conv(a, 9, 3, pad=1, groups=3)
    m.kill(a, 0, 1, 2)
    m.kill(b, 0, 1, 2)
    m.conv(b, 2)
    assert m.kept() == {0: [0, 1], a: [2, 3, 4, 5], b: [3, 4, 5, 6, 7, 8], 3: [0, 1]}
    smaller, _ = remove(m.network)
    assert smaller.layers[1].groups == 2


def test_a_layer_without_weights_still_has_an_input():
    """Its constants are features; what it read need not be computed but for one channel."""
    m = Maker(2, 4)
    a = m.conv(0, 5)
    m.kill(m.conv(a, 3), 0, 1, 2, value=7)
    assert m.kept() == {0: [0, 1], a: [0], 2: [0, 1, 2]}


def test_softmax_keeps_all_its_channels():
    m = Maker(2, 3)
    a = m.conv(0, 4)
    m.kill(a, 1)
    b = m._append(SOFTMAX, (a,), replace(m.network.tensors[a], zero_point=-128), table=exponentials(0.05, 1.0))
    m.conv(b, 2)
    m.ignore(3, 0, 1)
    on_device = m.kept(compute=lambda network, values: opened(network).encode_layers(values))
    assert on_device == {0: [0, 1], a: [0, 1, 2, 3], b: [0, 1, 2, 3], 3: [0, 1]}


def inverted_residual(m: Maker, source: int, width: int, gate: np.ndarray) -> list[int]:
    """A block of MobileNetV3: expansion, depthwise convolution, squeeze-excite, projection, skip. The numbers of its
    tensors from the expansion to the product."""
    channels = m.network.tensors[source].channels
    expanded = m.table(m.conv(source, width))
    filtered = m.table(m.conv(expanded, width, 3, pad=1, groups=width))
    squeezed = m.mean(filtered)
    excited = m.table(m.conv(m.table(m.conv(squeezed, 3)), width), gate)
    product = m.two(MUL, filtered, excited)
    m.two(ADD, m.conv(product, channels), source)
    return list(range(expanded - 1, product + 1))


def test_a_pruned_block_of_mobilenet_v3():
    """Expanded channels 0 and 5 are dead, 2 is filtered by zeros, 6 is projected by zeros: all but 6 leave every layer
    of the block, and 6 the projection alone, because the squeeze reads it, too."""
    m = Maker(3, 6)
    stem = m.conv(0, 4, 3, pad=1)
    gate = np.linspace(-10, 127, 256).astype(np.int8)
    expand, hidden, depthwise, filtered, squeezed, fc1, reduced, fc2, excited, product = inverted_residual(
        m, stem, 8, gate
    )
    projected = product + 1
    m.conv(m.mean(projected + 1), 5)
    m.kill(expand, 0, 5)
    m.kill(depthwise, 0, 2, 5)
    m.ignore(projected, 6)
    kept = m.kept()
    left = [1, 3, 4, 6, 7]
    assert all(kept[i] == left for i in (expand, hidden, depthwise, filtered, squeezed, fc2, excited, product))
    assert kept[fc1] == kept[reduced] == [0, 1, 2] and kept[stem] == kept[projected] == [0, 1, 2, 3]
    m.ignore(fc1, 6)
    left.remove(6)
    assert m.kept()[product] == left
    _, removed = remove(m.network)
    assert (removed.constant.channels, removed.unread.channels) == (2 * 2 + 4 * 3, 8 * 4 - 16)
