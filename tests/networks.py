"""What the tests of several parts share: small integer networks made without TensorFlow, a numpy reference."""

from __future__ import annotations

import numpy as np

from entropi.export.image import Centering, write_image
from entropi.export.integer import ADD, CONV, MAX_POOL, MEAN, Layer, Network, Tensor, quantise_multiplier


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
        if layer.kind in (CONV, MAX_POOL):
            x = np.pad(x, ((0, 0), (layer.pad[0], 99), (layer.pad[1], 99)), constant_values=source.zero_point)
            windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.int64), layer.kernel, axis=(1, 2))
            windows = windows[:, :: layer.stride[0], :: layer.stride[1]][:, : out.height, : out.width]
        if layer.kind == CONV:
            sums = np.einsum("chwyx,ocyx->ohw", windows, layer.weight.astype(np.int64)) + layer.bias[:, None, None]
            y = np.stack([requantise(s, *scale) for s, scale in zip(sums, layer.scales, strict=True)]) + out.zero_point
        elif layer.kind == MAX_POOL:
            y = windows.max(axis=(3, 4))
        elif layer.kind == ADD:
            parts = [
                requantise((v.astype(np.int64) - t.zero_point) << 20, *scale)
                for (v, t), scale in zip(sources, layer.scales[:2], strict=True)
            ]
            y = requantise(parts[0] + parts[1], *layer.scales[2]) + out.zero_point
        else:
            sums = (x.astype(np.int64) - source.zero_point).sum(axis=(1, 2), keepdims=True)
            y = requantise(sums, *layer.scales[0]) + out.zero_point
        seen[layer.output] = np.clip(y.astype(np.int64), layer.low, layer.high).astype(np.int8)
        outputs.append(seen[layer.output])
    return outputs


def conv_layer(rng, source: Tensor, number: int, out: Tensor, inputs, kernel, stride, pad, density) -> Layer:
    """A convolution whose sums use the whole int8 range; row 0 is empty, as dead channels are."""
    weight = rng.integers(-127, 128, (out.channels, source.channels, *kernel)).astype(np.int8)
    weight[rng.random(weight.shape) >= density] = 0
    weight[0] = 0
    bias = rng.integers(-2000, 2000, out.channels) - source.zero_point * weight.astype(np.int64).sum(axis=(1, 2, 3))
    width = 60 * 60 * max(1.0, density * weight[0].size) ** 0.5
    scales = tuple(quantise_multiplier(float(s)) for s in rng.uniform(40, 120, out.channels) / width)
    return Layer(CONV, f"conv{number}", inputs, number, -128, 127, kernel, stride, pad, scales, weight, bias)


def write(network: Network) -> bytes:
    """The network's image, its features not centred."""
    out = network.tensors[network.output]
    return write_image(network, Centering(np.zeros(out.channels * out.height * out.width, np.int8), 0.01))[0]


def residual_network(seed: int, channels: int = 6, size: int = 9, density: float = 0.3) -> Network:
    """Stem, pool, a block with a skip, a strided block and the mean: every kind of layer the device knows."""
    rng = np.random.default_rng(seed)

    def tensor(c, n):
        return Tensor(c, n, n, 0.05, int(rng.integers(-100, 20)))

    half, quarter = (size + 1) // 2, ((size + 1) // 2 + 1) // 2
    tensors = {
        0: tensor(3, size),
        1: tensor(channels, size),
        3: tensor(channels, half),
        4: tensor(channels, half),
        5: tensor(2 * channels, quarter),
        6: tensor(2 * channels, 1),
    }
    tensors[2] = Tensor(channels, half, half, 0.05, tensors[1].zero_point)
    t = tensors
    add_scales = tuple(quantise_multiplier(x) for x in (0.5, 0.5, 2 / (1 << 20)))
    layers = [
        conv_layer(rng, t[0], 1, t[1], (0,), (3, 3), (1, 1), (1, 1), 0.9),
        Layer(MAX_POOL, "pool", (1,), 2, -128, 127, (3, 3), (2, 2), (1, 1)),
        conv_layer(rng, t[2], 3, t[3], (2,), (3, 3), (1, 1), (1, 1), density),
        Layer(ADD, "add", (3, 2), 4, t[4].zero_point, 127, scales=add_scales),
        conv_layer(rng, t[4], 5, t[5], (4,), (3, 3), (2, 2), (1, 1), density),
        Layer(MEAN, "mean", (5,), 6, -128, 127, scales=(quantise_multiplier(1.3 / quarter**2),)),
    ]
    return Network(tensors, 0, 6, layers)
