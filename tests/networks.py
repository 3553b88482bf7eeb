"""What the tests of several parts share: small integer networks made without TensorFlow, a numpy reference."""

from __future__ import annotations

import numpy as np

from entropi.export.image import Centering, write_image
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

NOTHING = -1000  # what a clipped window sees outside


def requantise(x: np.ndarray, multiplier: int, shift: int) -> np.ndarray:
    """TFLM's two roundings, in Python's unbounded integers."""
    left, right = max(shift, 0), max(-shift, 0)
    high = (x.astype(object) * (1 << left) * int(multiplier) + (1 << 30)) >> 31
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def reference(network: Network, values: np.ndarray) -> list[np.ndarray]:
    """Every layer's output int8 [C, H, W], by the definition: pad with the zero point, multiply, add, scale, clamp."""
    seen = {network.input: values}
    outputs = []
    for layer in network.layers:
        out = network.tensors[layer.output]
        sources = [(seen[i], network.tensors[i]) for i in layer.inputs]
        x, source = sources[0]
        if layer.kind in WINDOWED:
            edge = NOTHING if layer.clipped else source.zero_point
            x = np.pad(x.astype(np.int64), ((0, 0), (layer.pad[0], 99), (layer.pad[1], 99)), constant_values=edge)
            windows = np.lib.stride_tricks.sliding_window_view(x, layer.extent, axis=(1, 2))
            windows = windows[:, :: layer.stride[0], :: layer.stride[1]][:, : out.height, : out.width]
            windows = windows[..., :: layer.dilation[0], :: layer.dilation[1]]
        if layer.kind == CONV:
            groups = zip(np.split(windows, layer.groups), np.split(layer.weight, layer.groups), strict=True)
            sums = np.concatenate([np.einsum("chwyx,ocyx->ohw", g, w.astype(np.int64)) for g, w in groups])
            sums += layer.bias[:, None, None]
            y = np.stack([requantise(s, *scale) for s, scale in zip(sums, layer.scales, strict=True)]) + out.zero_point
        elif layer.kind == MAX_POOL:
            y = windows.max(axis=(3, 4))
        elif layer.kind == AVERAGE_POOL:
            count = (windows != NOTHING).sum(axis=(3, 4))
            sums = np.where(windows == NOTHING, 0, windows).sum(axis=(3, 4))
            y = np.sign(sums) * ((np.abs(sums) + count // 2) // count)
        elif layer.kind in (ADD, SUB):
            parts = [
                requantise((v.astype(np.int64) - t.zero_point) << 20, *scale)
                for (v, t), scale in zip(sources, layer.scales[:2], strict=True)
            ]
            total = parts[0] + parts[1] if layer.kind == ADD else parts[0] - parts[1]
            y = requantise(total, *layer.scales[2]) + out.zero_point
        elif layer.kind == MUL:
            a, b = (v.astype(np.int64) - t.zero_point for v, t in sources)
            y = requantise(a * b, *layer.scales[0]) + out.zero_point
        elif layer.kind == TABLE:
            y = layer.table[x.astype(np.int64) + 128]
        elif layer.kind == COPY:
            y = seen.get(layer.output, np.zeros(out.shape, np.int8)).copy()
            y[layer.first : layer.first + len(x)] = x
        else:
            sums = (x.astype(np.int64) - source.zero_point).sum(axis=(1, 2), keepdims=True)
            y = requantise(sums, *layer.scales[0]) + out.zero_point
        seen[layer.output] = np.clip(y.astype(np.int64), layer.low, layer.high).astype(np.int8)
        outputs.append(seen[layer.output])
    return outputs


def conv_layer(
    rng, source: Tensor, number: int, out: Tensor, inputs, kernel, stride, pad, density, dilation=(1, 1), groups=1
) -> Layer:
    """A convolution whose sums use the whole int8 range; row 0 is empty, as dead channels are."""
    weight = rng.integers(-127, 128, (out.channels, source.channels // groups, *kernel)).astype(np.int8)
    weight[rng.random(weight.shape) >= density] = 0
    weight[0] = 0
    bias = rng.integers(-2000, 2000, out.channels) - source.zero_point * weight.astype(np.int64).sum(axis=(1, 2, 3))
    width = 60 * 60 * max(1.0, density * weight[0].size) ** 0.5
    scales = tuple(quantise_multiplier(float(s)) for s in rng.uniform(40, 120, out.channels) / width)
    fields = {"scales": scales, "weight": weight, "bias": bias, "dilation": dilation, "groups": groups}
    return Layer(CONV, f"conv{number}", inputs, number, -128, 127, kernel, stride, pad, **fields)


def write(network: Network) -> bytes:
    """The network's image, its features not centred."""
    out = network.tensors[network.output]
    return write_image(network, Centering(np.zeros(out.channels * out.height * out.width, np.int8), 0.01))[0]


def residual_network(seed: int, channels: int = 6, size: int = 9, density: float = 0.3) -> Network:
    """Every kind of layer the device knows: stem, pool, a block with a skip, a strided and a depthwise convolution, a
    product with the mean, and a concatenation. Features: 4 x channels."""
    rng = np.random.default_rng(seed)

    def tensor(c, n, zero_point=None):
        return Tensor(c, n, n, 0.05, int(rng.integers(-100, 20)) if zero_point is None else zero_point)

    half, quarter = (size + 1) // 2, ((size + 1) // 2 + 1) // 2
    twice = 2 * channels
    t = {0: tensor(3, size), 1: tensor(channels, size)}
    t[2] = tensor(channels, half, t[1].zero_point)
    t |= {3: tensor(channels, half), 4: tensor(channels, half), 5: tensor(twice, quarter), 6: tensor(twice, quarter)}
    t |= {7: tensor(twice, quarter), 8: tensor(twice, quarter, t[6].zero_point), 9: tensor(twice, 1)}
    t |= {10: tensor(twice, quarter), 11: tensor(twice, quarter)}
    t |= {12: tensor(2 * twice, quarter, t[11].zero_point), 13: tensor(2 * twice, 1)}
    sums = tuple(quantise_multiplier(x) for x in (0.5, 0.5, 2 / (1 << 20)))
    mean = (quantise_multiplier(1.3 / quarter**2),)

    def conv(number, source, stride, depth=1, groups=1, dilation=1):
        reach = (dilation, dilation)
        return conv_layer(
            rng, t[source], number, t[number], (source,), (3, 3), (stride, stride), reach, depth, reach, groups
        )

    def layer(kind, number, *inputs, low=-128, **fields):
        return Layer(kind, f"layer{number}", inputs, number, low, 127, **fields)

    layers = [
        conv(1, 0, 1, 0.9),
        layer(MAX_POOL, 2, 1, kernel=(3, 3), stride=(2, 2), pad=(1, 1)),
        conv(3, 2, 1, density),
        layer(ADD, 4, 3, 2, low=t[4].zero_point, scales=sums),
        conv(5, 4, 2, density),
        conv(6, 5, 1, density, groups=twice, dilation=2),
        layer(TABLE, 7, 6, table=rng.integers(-128, 128, 256).astype(np.int8)),
        layer(AVERAGE_POOL, 8, 6, kernel=(3, 3), pad=(1, 1), clipped=True),
        layer(MEAN, 9, 5, scales=mean),
        layer(MUL, 10, 8, 9, scales=(quantise_multiplier(0.02),)),
        layer(SUB, 11, 10, 7, scales=sums),
        layer(COPY, 12, 11),
        layer(COPY, 12, 5, first=twice),
        layer(MEAN, 13, 12, scales=mean),
    ]
    return Network(t, 0, 13, layers)
