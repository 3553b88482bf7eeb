"""What an integer network can do without: channels that always hold the same value, and channels that no layer reads.

Every byte of the channels that stay, and of the features, is what it was. Two walks find what can go:

    _fold      from the input on, the smallest and largest value of every channel; a channel where they are equal is
               constant, and what a convolution reads of it moves into the convolution's bias
    _needed    from the output back, the channels that something reads; channels that can only go together are a group
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from entropi.export.integer import (
    ADD,
    ADD_HEADROOM_BITS,
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
    requantise,
)

ROW_BYTES = 9  # bias, multiplier and shift of one output channel
INT32_MAX = (1 << 31) - 1
STAYS, CONSTANT, UNREAD = range(3)


@dataclass(frozen=True)
class Saving:
    """What one kind of removal took away: channels of all tensors; weights, zeros included, and those of them that are
    not zero; bytes of biases and scales; bytes of activations without borders, of all tensors together."""

    channels: int
    weights: int
    nonzeros: int
    parameter_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Removed:
    """What is left and what is gone. `channels` maps every tensor of the new network to the channels of the old one
    that it holds, in order. `constant`: channels that always held one value. `unread`: other channels that no layer
    read. `folded`: weights between channels that stay, now zeros, because the input or the output is constant.
    `layers`: names of the layers that are gone."""

    channels: dict[int, np.ndarray]
    constant: Saving
    unread: Saving
    folded: Saving
    layers: tuple[str, ...]


def remove(network: Network) -> tuple[Network, Removed]:
    """The network without its constant and unread channels; tensors keep their numbers, the features their order.

    A constant that a padded convolution reads is folded into the bias only where no border is mixed into it (the
    constant is the zero point, or the weights that meet the border add up to the same everywhere). Biases stay within
    the limits that they had: what a bias takes up is never more than its weights could have added.
    """
    folded, ranges = _fold(network)
    groups = _groups(folded)
    needed = _needed(folded, groups)
    kept = {index: np.flatnonzero(needed[group]) for index, group in groups.items()}
    layers = [_without(layer, kept) for layer in folded.layers if _stays(layer, kept)]
    used = {network.input, network.output} | {i for layer in layers for i in (*layer.inputs, layer.output)}
    tensors = {i: replace(t, channels=len(kept[i])) for i, t in network.tensors.items() if i in used}
    gone = tuple(layer.name for layer in network.layers if not _stays(layer, kept))
    removed = Removed({i: kept[i] for i in tensors}, *_savings(network, folded, kept, ranges), gone)
    return Network(tensors, network.input, network.output, layers), removed


# Forward: what values a channel can take.

Range = tuple[np.ndarray, np.ndarray]  # the smallest and the largest value of each channel, int64


def _fold(network: Network) -> tuple[Network, dict[int, Range]]:
    """The network with its constants in the biases, and the range of every channel of every tensor."""
    tensors, ranges, layers = network.tensors, {}, []
    ranges[network.input] = _anything(tensors[network.input])
    for layer in network.layers:
        out = tensors[layer.output]
        sources = [(tensors[i], *ranges[i]) for i in layer.inputs]
        if layer.kind == CONV:
            layer, found = _fold_conv(layer, out, *sources[0])
        elif layer.kind == COPY:
            found = ranges.get(layer.output, _anything(out))
            for ends, part in zip(found, sources[0][1:], strict=True):
                ends[layer.first : layer.first + len(part)] = part
        else:
            found = _clamped(layer, _range(layer, out, sources))
        ranges[layer.output] = found
        layers.append(layer)
    return Network(tensors, network.input, network.output, layers), ranges


def _anything(t: Tensor) -> Range:
    return np.full(t.channels, -128), np.full(t.channels, 127)


def _clamped(layer: Layer, ends: Range) -> Range:
    low, high = (np.clip(end, layer.low, layer.high) for end in ends)
    return low, high


def _inside(layer: Layer, source: Tensor, out: Tensor) -> np.ndarray:
    """bool [windows, taps]: which values of a window lie inside the map, for every kind of window there is."""
    axes = []
    numbers = layer.kernel, layer.stride, layer.dilation, layer.pad
    for size, count, kernel, stride, dilation, pad in zip(source.shape[1:], out.shape[1:], *numbers, strict=True):
        at = np.arange(count)[:, None] * stride + np.arange(kernel) * dilation - pad
        axes.append(np.unique((at >= 0) & (at < size), axis=0))
    rows, columns = axes
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(-1, layer.kernel[0] * layer.kernel[1])


def _fold_conv(layer: Layer, out: Tensor, source: Tensor, low: np.ndarray, high: np.ndarray) -> tuple[Layer, Range]:
    """A convolution without weights for what is constant, in its input or its output, and its range.

    |bias| grows by at most 128 for each unit of |weight| that goes, so int32 sums that fitted still fit."""
    weight = layer.weight.reshape(*layer.weight.shape[:2], -1).copy()  # [out, in / groups, taps]
    bias = layer.bias.astype(np.int64)
    zero_point, groups = source.zero_point, layer.groups
    inside = _inside(layer, source, out)

    def read_by_rows(values: np.ndarray) -> np.ndarray:
        """From one for each input channel to [out, in / groups]: those that each row reads."""
        return np.repeat(values.reshape(groups, -1), len(weight) // groups, axis=0)

    rows, columns = np.nonzero(read_by_rows(low == high) & weight.any(axis=2))
    taps, above = weight[rows, columns].astype(np.int64), read_by_rows(low)[rows, columns] - zero_point
    sums = taps @ inside.T  # of the weights inside the map, for every window
    same = (above == 0) | (sums == sums[:, :1]).all(axis=1)
    np.add.at(bias, rows[same], (zero_point * taps.sum(axis=1) + above * sums[:, 0])[same])
    weight[rows[same], columns[same]] = 0

    # A tap that can meet the border may see the zero point, too.
    meets = ~inside.all(axis=0)
    least = np.where(meets, np.minimum(low, zero_point)[:, None], low[:, None]).reshape(groups, -1, 1)
    most = np.where(meets, np.maximum(high, zero_point)[:, None], high[:, None]).reshape(groups, -1, 1)
    grouped = weight.reshape(groups, len(weight) // groups, -1).astype(float)  # exact: sums stay below 2^53
    positive, negative = np.maximum(grouped, 0), np.minimum(grouped, 0)
    smallest = bias + (positive @ least + negative @ most).ravel().astype(np.int64)
    largest = bias + (positive @ most + negative @ least).ravel().astype(np.int64)
    found = _clamped(layer, _requantised(smallest, largest, np.array(layer.scales).T, out.zero_point))
    constant = found[0] == found[1]
    weight[constant], bias[constant] = 0, smallest[constant]
    return replace(layer, weight=weight.reshape(layer.weight.shape), bias=bias), found


def _requantised(low: np.ndarray, high: np.ndarray, scale, zero_point: int = 0) -> Range:
    """The range of sums after scaling; any int32 where the device's 32 bits might not hold the sums."""
    multiplier, shift = scale
    rounding = 1 << np.maximum(np.negative(shift), 0) >> 1
    fits = (np.maximum(abs(low), abs(high)) << np.maximum(shift, 0)) + rounding <= INT32_MAX
    low, high = (requantise(np.where(fits, end, 0), multiplier, shift) + zero_point for end in (low, high))
    return np.where(fits, low, -INT32_MAX - 1), np.where(fits, high, INT32_MAX)


def _range(layer: Layer, out: Tensor, sources: list[tuple[Tensor, np.ndarray, np.ndarray]]) -> Range:
    """The range of a layer's output before its clamp, for all but convolutions and copies."""
    source, low, high = sources[0]
    zero_point = source.zero_point
    if layer.kind in (MAX_POOL, AVERAGE_POOL):
        inside = np.ones((1, 1), bool) if layer.clipped else _inside(layer, source, out)
        if layer.kind == AVERAGE_POOL and not inside.all() or not inside.any(axis=1).all():
            low = np.minimum(low, zero_point)
        return low, high if inside.all() else np.maximum(high, zero_point)
    if layer.kind in (ADD, SUB):
        terms = [
            _requantised((low - t.zero_point) << ADD_HEADROOM_BITS, (high - t.zero_point) << ADD_HEADROOM_BITS, scale)
            for (t, low, high), scale in zip(sources, layer.scales[:2], strict=True)
        ]
        a, b = terms[0], terms[1] if layer.kind == ADD else (-terms[1][1], -terms[1][0])
        return _requantised(a[0] + b[0], a[1] + b[1], layer.scales[2], out.zero_point)
    if layer.kind == MUL:
        a, b = ((low - t.zero_point, high - t.zero_point) for t, low, high in sources)
        products = np.stack([x * y for x in a for y in b])
        return _requantised(products.min(axis=0), products.max(axis=0), layer.scales[0], out.zero_point)
    if layer.kind == MEAN:
        count = source.height * source.width
        sums = count * (low - zero_point), count * (high - zero_point)
        return _requantised(*sums, layer.scales[0], out.zero_point)
    if layer.kind == TABLE:
        parts = [layer.table[a + 128 : b + 129] for a, b in zip(low, high, strict=True)]
        return np.array([part.min() for part in parts], int), np.array([part.max() for part in parts], int)
    return _anything(out)  # softmax


# Backward: what is read.


def _groups(network: Network) -> dict[int, np.ndarray]:
    """For every channel of every tensor the number of its group: channels that stay or go together."""
    numbers, count = {}, 0
    for index, t in network.tensors.items():
        numbers[index] = np.arange(count, count + t.channels)
        count += t.channels
    pairs = [np.empty((2, 0), int)]
    for layer in network.layers:
        source, out = numbers[layer.inputs[0]], numbers[layer.output]
        if layer.kind == CONV and layer.groups > 1:
            first = source[:: len(source) // layer.groups]
            pairs += [(c, np.repeat(first, len(c) // layer.groups)) for c in (source, out)]
        elif layer.kind == SOFTMAX:
            pairs += [(c, np.broadcast_to(source[0], c.shape)) for c in (source, out)]
        elif layer.kind == COPY:
            pairs.append((source, out[layer.first : layer.first + len(source)]))
        elif layer.kind != CONV:
            pairs += [(numbers[i], out) for i in layer.inputs if len(numbers[i]) == len(out)]
    rows, columns = np.hstack(pairs)
    _, labels = connected_components(coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count)))
    return {index: labels[channels] for index, channels in numbers.items()}


def _needed(network: Network, groups: dict[int, np.ndarray]) -> np.ndarray:
    """bool [groups]: those that the output holds or a layer on the way to it reads, and the input's."""
    needed = np.zeros(1 + max(int(labels.max()) for labels in groups.values()), bool)
    needed[groups[network.output]] = needed[groups[network.input]] = True
    count = 0
    while count < (found := np.count_nonzero(needed)):
        count = found
        for layer in reversed(network.layers):
            source = groups[layer.inputs[0]]
            live = needed[groups[layer.output]]
            if layer.kind == COPY:
                live = live[layer.first : layer.first + len(source)]
            if layer.kind == CONV and layer.groups == 1:
                needed[source[layer.weight[live].any(axis=(0, 2, 3))]] = True
            if live.any():
                for labels in (groups[i] for i in layer.inputs):  # a layer that stays keeps something to read
                    needed[labels[0]] |= not needed[labels].any()
    return needed


# What is left, and what is gone.


def _stays(layer: Layer, kept: dict[int, np.ndarray]) -> bool:
    return all(len(kept[index]) for index in (*layer.inputs, layer.output))


def _without(layer: Layer, kept: dict[int, np.ndarray]) -> Layer:
    """The layer over the channels that are kept."""
    source, out = kept[layer.inputs[0]], kept[layer.output]
    if layer.kind == COPY:
        return replace(layer, first=int(np.searchsorted(out, layer.first)))
    if layer.kind != CONV:
        return layer
    weight = layer.weight[out] if layer.groups > 1 else layer.weight[np.ix_(out, source)]
    return replace(
        layer,
        weight=weight,
        bias=layer.bias[out],
        scales=tuple(layer.scales[row] for row in out),
        groups=len(source) // weight.shape[1],
    )


def _savings(
    network: Network, folded: Network, kept: dict[int, np.ndarray], ranges: dict[int, Range]
) -> tuple[Saving, Saving, Saving]:
    """Of constant channels, of unread ones, of folded weights. A weight counts with its row where that goes, else with
    the channel that it read."""
    kinds = {}
    for index, (low, high) in ranges.items():
        kinds[index] = np.where(low == high, CONSTANT, UNREAD)
        kinds[index][kept[index]] = STAYS
    sums = np.zeros((3, 5), int)
    for index, kind in kinds.items():
        t = network.tensors[index]
        for k in (CONSTANT, UNREAD):
            sums[k, [0, 4]] += np.count_nonzero(kind == k) * np.array([1, t.height * t.width])
    for before, after in zip(network.layers, folded.layers, strict=True):
        if before.kind != CONV:
            continue
        rows = kinds[before.output]
        read = np.repeat(kinds[before.inputs[0]].reshape(before.groups, -1), len(rows) // before.groups, axis=0)
        gone = np.where(rows[:, None] != STAYS, rows[:, None], read)[:, :, None, None]
        for k in (CONSTANT, UNREAD):
            here = np.broadcast_to(gone == k, before.weight.shape)
            nonzeros = np.count_nonzero(before.weight[here])
            sums[k, 1:4] += np.count_nonzero(here), nonzeros, ROW_BYTES * np.count_nonzero(rows == k)
        sums[STAYS, 2] += np.count_nonzero((gone == STAYS) & (before.weight != 0) & (after.weight == 0))
    stays, constant, unread = (Saving(*row) for row in sums.tolist())
    return constant, unread, stays
