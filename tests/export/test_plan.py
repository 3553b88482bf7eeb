"""The memory plan: nothing alive shares bytes but where it changes nothing, every window stays inside its border, and
the arena is hardly larger than what is alive at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ADD_SCALES, KINDS, conv_layer, opened, reference, residual_network, shapes_of, skipping_networks
from torch import nn

from entropi.export.graph import from_module
from entropi.export.integer import (
    ADD,
    CONV,
    COPY,
    MAX_POOL,
    SOFTMAX,
    SUB,
    TABLE,
    WINDOWED,
    Layer,
    Network,
    Tensor,
)
from entropi.export.plan import IN_PLACE, Peak, Place, borders, peak, plan, reach
from entropi.export.softmax import exponentials
from entropi.host.networks import archs

residual_networks = st.builds(
    residual_network, st.integers(0, 99), st.integers(1, 9), st.integers(2, 14), st.floats(0.05, 1)
)


OPTIMIZE = st.sampled_from(["size", "speed"])


def alive_at(network: Network, step: int) -> set[int]:
    """Tensors whose bytes matter while layer `step` runs: what it reads and writes, and what is read later."""
    written = {network.input} | {layer.output for layer in network.layers[: step + 1]}
    read_later = {network.output} | {i for layer in network.layers[step:] for i in layer.inputs}
    return written & read_later | {network.layers[step].output}


def addresses(network: Network, place: Place, index: int) -> np.ndarray:
    """Where each value of a tensor lies, as docs/image-format.md says."""
    top, left, bottom, right = place.border
    channels, height, width = network.tensors[index].shape
    pitch = left + width + right
    c, y, x = np.ogrid[:channels, :height, :width]
    return place.offset + c * pitch * (top + height + bottom) + (top + y) * pitch + left + x


def groups_of(network: Network, layer: Layer) -> int:
    """A pool's groups are its channels."""
    return layer.groups if layer.kind == CONV else network.tensors[layer.output].channels


def alive_bytes(network: Network) -> int:
    """The largest sum of living tensors without borders, no two sharing a byte."""
    size = {index: int(np.prod(t.shape)) for index, t in network.tensors.items()}
    return max(sum(size[i] for i in alive_at(network, step)) for step in range(len(network.layers)))


def may_share(network: Network, places: dict[int, Place], step: int, a: int, b: int) -> bool:
    """Whether tensor b may lie over tensor a while layer `step` runs: it replaces a, value by value, from the first
    address to the last, or each group of channels before the groups of a that are read from then on; or it holds a at
    the same addresses."""
    layer = network.layers[step]
    from_a, from_b = addresses(network, places[a], a), addresses(network, places[b], b)
    later = {network.output} | {i for other in network.layers[step + 1 :] for i in other.inputs}
    replaces = a in layer.inputs and b == layer.output and a not in later
    if layer.kind in IN_PLACE and replaces:
        return bool((from_b == from_a if layer.kind == SOFTMAX else from_b <= from_a).all())
    if layer.kind in WINDOWED and replaces:
        groups = groups_of(network, layer)
        written = from_b.reshape(groups, -1).max(axis=1)
        return bool((written < places[a].offset + places[a].bytes // groups * np.arange(groups)).all())
    copies = [c for c in network.layers if c.kind == COPY and (c.inputs[0], c.output) == (a, b)]
    return places[a].border == places[b].border and any(
        np.array_equal(from_b[c.first : c.first + len(from_a)], from_a) for c in copies
    )


@settings(max_examples=200, deadline=None)
@given(
    network=st.one_of(residual_networks, skipping_networks((*KINDS, SOFTMAX))),
    optimize=OPTIMIZE,
    sizes=st.lists(st.integers(0, 400), min_size=20, max_size=20),
)
def test_nothing_alive_shares_bytes(network, optimize, sizes):
    scratch = {step: size for step, (_, size) in enumerate(zip(network.layers, sizes, strict=False)) if size}
    planned = plan(network, optimize, scratch)
    places, total = planned.places, planned.bytes
    assert {step: place.bytes for step, place in planned.scratch.items()} == scratch
    assert all(place.offset % 4 == 0 for place in planned.scratch.values())
    behind = {index: 0 for index in places}
    for layer in network.layers:
        if layer.kind == CONV:  # columns beside the map are read, and taken back
            source = layer.inputs[0]
            beside = [r - b for r, b in zip(reach(network, layer), places[source].border, strict=True)][1::2]
            assert beside[0] <= places[source].offset
            behind[source] = max(behind[source], beside[1])
    ends = [p.end + behind[index] for index, p in places.items()] + [p.end for p in planned.scratch.values()]
    assert total == max(ends)
    most = 0
    for step in range(len(network.layers)):
        alive = alive_at(network, step)
        taken = np.zeros(total, bool)
        for a in alive:
            taken[places[a].offset : places[a].end] = True
            for b in alive - {a}:
                apart = places[a].end <= places[b].offset or places[b].end <= places[a].offset
                allowed = may_share(network, places, step, a, b) or may_share(network, places, step, b, a)
                assert apart or allowed, (step, a, b)
        if step in scratch:
            where = slice(planned.scratch[step].offset, planned.scratch[step].end)
            assert not taken[where].any()
            taken[where] = True
        most = max(most, int(taken.sum()))
    found = peak(network, planned)
    assert found.bytes == most <= total
    if 0 <= found.layer < len(network.layers):
        assert set(found.tensors) == alive_at(network, found.layer)
    needed = borders(network) if optimize == "speed" else dict.fromkeys(places, (0, 0, 0, 0))
    for index, place in places.items():
        t, (top, left, bottom, right) = network.tensors[index], place.border
        assert place.bytes == t.channels * (top + t.height + bottom) * (left + t.width + right)
        assert all(n <= m for n, m in zip(needed[index], place.border, strict=True))


@settings(max_examples=150, deadline=None)
@given(network=st.one_of(residual_networks, skipping_networks()))
def test_borders_are_as_wide_as_a_convolutions_windows_and_no_wider(network):
    reached = {index: [0, 0, 0, 0] for index in network.tensors}
    for layer in network.layers:
        if layer.kind != CONV:
            continue
        source, out = network.tensors[layer.inputs[0]], network.tensors[layer.output]
        sides = reached[layer.inputs[0]]
        for axis, (size, count) in enumerate(zip(source.shape[1:], out.shape[1:], strict=True)):
            starts = [o * layer.stride[axis] - layer.pad[axis] for o in range(count)]
            sides[axis] = max(sides[axis], -min(starts))
            sides[axis + 2] = max(sides[axis + 2], max(starts) + layer.extent[axis] - size)
    assert borders(network) == {index: tuple(sides) for index, sides in reached.items()}


@settings(max_examples=200, deadline=None)
@given(network=skipping_networks(), optimize=OPTIMIZE)
def test_the_runtime_computes_the_definition_on_the_plan(network, optimize):
    values = np.random.default_rng(0).integers(-128, 128, network.tensors[0].shape).astype(np.int8)
    device = opened(network, optimize)
    expected = reference(network, values)
    found = device.encode_layers(values)
    for number in network.last_writers().values():
        np.testing.assert_array_equal(found[number], expected[number], err_msg=network.layers[number].name)
    outputs = {0: values} | {layer.output: y for layer, y in zip(network.layers, expected, strict=True)}
    np.testing.assert_array_equal(device.encode(values), outputs[network.output].ravel())


def test_a_border_that_a_copy_brings_keeps_a_pool_off_its_input():
    """Two pools of the input, of which the second may write over it, lie where a tensor with a border wants them."""
    rng = np.random.default_rng(0)
    tensors = {i: Tensor(3, 4, 4, 0.05, 0) for i in range(3)} | {
        3: Tensor(6, 4, 4, 0.05, 0),
        4: Tensor(2, 4, 4, 0.05, 3),
    }
    pools = [Layer(MAX_POOL, f"pool{i}", (0,), i, -128, 127, clipped=True) for i in (1, 2)]
    copies = [Layer(COPY, f"copy{i}", (i,), 3, -128, 127, first=3 * (i - 1)) for i in (1, 2)]
    conv = conv_layer(rng, tensors[3], 4, tensors[4], (3,), (3, 3), (1, 1), (1, 1), 1.0)
    network = Network(tensors, 0, 4, [*pools, *copies, conv])
    values = rng.integers(-128, 128, (3, 4, 4)).astype(np.int8)
    for optimize in ("size", "speed"):
        np.testing.assert_array_equal(opened(network, optimize).encode_layers(values)[1], values)


def test_a_chain_takes_the_two_largest_neighbours():
    """Three tensors of 40, 80 and 24 bytes in a row: 40 and 24 share their place beside the 80."""
    tensors = {i: Tensor(n, 1, 1, 0.05, 0) for i, n in enumerate((40, 80, 24))}
    rng = np.random.default_rng(0)
    layers = [conv_layer(rng, tensors[i], i + 1, tensors[i + 1], (i,), (1, 1), (1, 1), (0, 0), 1.0) for i in range(2)]
    network = Network(tensors, 0, 2, layers)
    planned = plan(network)
    places, total = planned.places, planned.bytes
    assert {i: p.offset for i, p in places.items()} == {0: 80, 1: 0, 2: 80} and total == 120
    assert peak(network, planned) == Peak(0, (0, 1), 120)


def elementwise(kind: int, number: int, *inputs: int) -> Layer:
    table = np.arange(256).astype(np.int8)
    return Layer(kind, f"layer{number}", inputs, number, -128, 127, scales=ADD_SCALES, table=table)


def convolution(tensors: dict[int, Tensor], number: int, source: int, pad: int = 0) -> Layer:
    """3x3 where it is padded, else 1x1."""
    rng, kernel = np.random.default_rng(0), (1 + 2 * pad,) * 2
    return conv_layer(rng, tensors[source], number, tensors[number], (source,), kernel, (1, 1), (pad, pad), 1.0)


def test_elementwise_layers_write_over_what_dies():
    """Tensor 1 becomes 2 where it lies, 2 becomes 3 within 3's border, which "speed" wants."""
    tensors = {i: Tensor(3 if i == 4 else 2, 4, 4, 0.05, 0) for i in range(5)}
    layers = [convolution(tensors, 1, 0), elementwise(TABLE, 2, 1), elementwise(ADD, 3, 2, 0)]
    network = Network(tensors, 0, 4, [*layers, convolution(tensors, 4, 3, pad=1)])
    planned = plan(network, "speed")
    places, total = planned.places, planned.bytes
    assert places[2].offset == places[1].offset
    bordered = 2 * 6 * 6
    assert places[3].bytes == bordered and places[3].end >= places[2].end > places[3].offset
    assert peak(network, planned) == Peak(3, (3, 4), bordered + 48) and total == bordered + 48


def test_the_second_input_is_written_over_where_the_first_lives_on():
    tensors = {i: Tensor(2, 4, 4, 0.05, 0) for i in range(4)}
    layers = [convolution(tensors, 1, 0), elementwise(SUB, 2, 0, 1), elementwise(ADD, 3, 0, 2)]
    planned = plan(Network(tensors, 0, 3, layers))
    places, total = planned.places, planned.bytes
    assert places[1].offset == places[2].offset and total == 64


def test_a_concatenation_is_computed_in_its_place():
    """Both parts get the border of the whole and lie inside it: the arena holds the whole and its source, no more."""
    tensors = {0: Tensor(3, 4, 4, 0.05, 5), 1: Tensor(2, 4, 4, 0.05, 5), 2: Tensor(4, 4, 4, 0.05, 5)}
    tensors |= {3: Tensor(6, 4, 4, 0.05, 5), 4: Tensor(1, 4, 4, 0.05, 5)}
    copies = [Layer(COPY, "cat", (i,), 3, -128, 127, first=first) for i, first in ((1, 0), (2, 2))]
    layers = [convolution(tensors, 1, 0), convolution(tensors, 2, 0), *copies, convolution(tensors, 4, 3, pad=1)]
    network = Network(tensors, 0, 4, layers)
    planned = plan(network, "speed")
    places, total = planned.places, planned.bytes
    plane = 6 * 6
    assert places[1].border == places[2].border == places[3].border == (1, 1, 1, 1)
    assert [places[i].offset - places[3].offset for i in (1, 2)] == [0, 2 * plane]
    assert total == peak(network, planned).bytes == 6 * plane + 3 * 16


def test_softmax_over_its_input_is_softmax():
    """It writes over its input, except where that is read again; the results are the same."""
    rng = np.random.default_rng(0)
    tensors = {i: Tensor(9, 2, 3, 0.05, 0) for i in range(4)}
    softmax = replace(elementwise(SOFTMAX, 2, 1), table=exponentials(0.05, 1.0))
    layers = [replace(convolution(tensors, 1, 0), scales=((1 << 30, -5),) * 9), softmax]
    alone = Network(tensors, 0, 2, layers)
    kept = Network(tensors, 0, 3, [*layers, elementwise(ADD, 3, 2, 1)])
    offsets = [{i: p.offset for i, p in plan(network).places.items()} for network in (alone, kept)]
    assert offsets[0][1] == offsets[0][2] and offsets[1][1] != offsets[1][2]
    for values in rng.integers(-128, 128, (5, 9, 2, 3)).astype(np.int8):
        found = [opened(network).encode_layers(values)[1] for network in (alone, kept)]
        assert found[0].std() > 0
        np.testing.assert_array_equal(*found)


def pool(tensors: dict[int, Tensor], number: int, source: int) -> Layer:
    """2x2 to half the size."""
    return Layer(MAX_POOL, "pool", (source,), number, -128, 127, kernel=(2, 2), stride=(2, 2))


def depthwise(tensors: dict[int, Tensor], number: int, source: int) -> Layer:
    """3x3, padded."""
    t, rng = tensors[source], np.random.default_rng(0)
    groups = t.channels
    return conv_layer(rng, t, number, tensors[number], (source,), (3, 3), (1, 1), (1, 1), 1.0, groups=groups)


@pytest.mark.parametrize(("make", "size"), [(pool, 4), (depthwise, 8)])
def test_channels_are_written_over_what_dies(make, size, monkeypatch):
    """Each channel of the output ends where the input's begins, so the arena holds the input and one channel more."""
    monkeypatch.setattr("entropi.export.plan.MOST_OVER_ALIVE", 0)  # no bytes for borders
    tensors = {0: Tensor(1, 8, 8, 0.05, 0), 1: Tensor(16, 8, 8, 0.05, 7), 2: Tensor(16, size, size, 0.05, 7)}
    network = Network(tensors, 0, 2, [convolution(tensors, 1, 0), make(tensors, 2, 1)])
    planned = plan(network)
    places, total = planned.places, planned.bytes
    assert places[1].offset - places[2].offset == size * size and total <= 16 * 64 + 64 + 2
    values = np.random.default_rng(1).integers(-128, 128, (1, 8, 8)).astype(np.int8)
    np.testing.assert_array_equal(opened(network).encode_layers(values)[1], reference(network, values)[1])


def test_an_input_that_is_read_again_is_not_written_over():
    tensors = {i: Tensor(16, 8, 8, 0.05, 7) for i in range(4)}
    layers = [convolution(tensors, 1, 0), depthwise(tensors, 2, 1), elementwise(ADD, 3, 1, 2)]
    places = plan(Network(tensors, 0, 3, layers)).places
    assert apart(places[1], places[2])


def test_a_border_goes_where_it_costs_bytes_and_stays_where_it_does_not():
    """Tensors 0 and 1 are the largest two at once; 2 and 3 leave room for a border around 2."""
    tensors = {0: Tensor(8, 8, 8, 0.05, 7), 1: Tensor(8, 8, 8, 0.05, 7), 2: Tensor(4, 8, 8, 0.05, 7)}
    tensors[3] = Tensor(2, 8, 8, 0.05, 7)
    layers = [convolution(tensors, number, number - 1, pad=1) for number in (1, 2, 3)]
    planned = plan(Network(tensors, 0, 3, layers))
    places, total = planned.places, planned.bytes
    assert [any(places[i].border) for i in range(4)] == [False, False, True, False]
    assert total == 2 * 8 * 64 + 2  # a column before and behind is read and taken back


def test_a_border_wider_than_the_format_holds_is_left_out():
    source, out = Tensor(2, 300, 3, 0.05, 9), Tensor(2, 300, 3, 0.05, 0)
    layer = conv_layer(np.random.default_rng(0), source, 1, out, (0,), (5, 1), (1, 1), (400, 0), 1.0, (200, 1))
    network = Network({0: source, 1: out}, 0, 1, [layer])
    assert borders(network)[0] == (0, 0, 0, 0)


def apart(a: Place, b: Place) -> bool:
    return a.end <= b.offset or b.end <= a.offset


def test_softmax_into_a_border_has_a_place_of_its_own():
    """It reads a position's channels again after the first of them is written: no value may move."""
    tensors = {i: Tensor(3, 4, 4, 0.05, 0) for i in range(4)}
    layers = [convolution(tensors, 1, 0), elementwise(SOFTMAX, 2, 1), convolution(tensors, 3, 2, pad=1)]
    places = plan(Network(tensors, 0, 3, layers), "speed").places
    assert apart(places[1], places[2])


def test_a_copy_between_zero_points_has_a_place_of_its_own():
    """The border of the whole would be written over that of the part."""
    tensors = {i: Tensor(3, 4, 4, 0.05, 5 * (i == 1)) for i in range(4)}
    whole = Layer(COPY, "cat", (1,), 2, -128, 127)
    layers = [convolution(tensors, 1, 0), whole, convolution(tensors, 3, 2, pad=1)]
    places = plan(Network(tensors, 0, 3, layers), "speed").places
    assert apart(places[1], places[2])


def test_a_network_of_nothing_takes_its_input():
    network = Network({0: Tensor(3, 4, 4, 0.05, 0)}, 0, 0)
    planned = plan(network)
    assert planned.bytes == 48 and peak(network, planned) == Peak(-1, (0,), 48)


class Fire(nn.Module):
    """SqueezeNet's module: two convolutions of one map, concatenated."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(inputs, outputs // 4, 1), nn.ReLU())
        self.narrow, self.wide = nn.Conv2d(outputs // 4, outputs, 1), nn.Conv2d(outputs // 4, outputs, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x)
        return nn.functional.relu(torch.cat([self.narrow(x), self.wide(x)], 1))


def fires() -> nn.Sequential:
    stem = nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU()
    blocks = Fire(32, 32), Fire(64, 32), nn.MaxPool2d(2), Fire(64, 64), Fire(128, 64)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vgg() -> nn.Sequential:
    layers, inputs = [], 3
    for outputs in (32, 32, 0, 64, 64, 0, 128, 128, 0, 256):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()] if outputs else [nn.MaxPool2d(2)]
        inputs = outputs or inputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETWORKS = (
    "resnet8", "resnet18", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
    "regnet_y_400mf",
)  # fmt: skip


@pytest.mark.parametrize(("make", "size"), [*((make, 32) for make in (fires, vgg, *NETWORKS)), ("mobilenet_v2", 96)])
def test_the_arena_is_hardly_larger_than_what_is_alive_at_once(make, size):
    module = archs.split(archs.build(make, 2))[0] if isinstance(make, str) else make()
    network = shapes_of(from_module(module, (3, size, size)))
    planned = plan(network)
    places, total = planned.places, planned.bytes
    assert total <= 1.02 * min(peak(network, planned).bytes, alive_bytes(network))
    assert any(any(place.border) for place in places.values())
    fast = plan(network, "speed")
    assert total <= fast.bytes <= 1.02 * peak(network, fast).bytes
