"""Dense kernels in plain C, with DSP instructions and with vectors give what the definition says."""

from pathlib import Path

import numpy as np
import pytest
from bare import EXTREMES, inputs, without_borders
from networks import write, wrong_layers

from entropi.device import SMALLEST_HEAD, Bundle, measure
from entropi.device.bundle import Preprocessing
from entropi.export.integer import CONV, MAX_POOL, Layer, Network, Tensor, quantise_multiplier
from entropi.export.plan import plan
from entropi.export.rows import DENSE, forms

CHANNELS = 14
# Output channels, groups, kernel, stride, dilation: more channels than sums wait at a time, of one position too; rows
# that take several slices; a channel each, of one weight row or more, of more taps than a band or a list holds.
LAYERS = (
    (18, 1, (3, 3), 1, 1),
    (66, 1, (1, 1), 1, 1),
    (5, 1, (5, 5), 2, 1),
    (6, 2, (3, 2), 1, 2),
    (3, 1, (1, 1), 3, 1),
    (CHANNELS, CHANNELS, (3, 3), 1, 1),
    (CHANNELS, CHANNELS, (5, 5), 1, 1),
    (2 * CHANNELS, CHANNELS, (3, 3), 2, 1),
    (CHANNELS, CHANNELS, (2, 7), 2, 2),
    (CHANNELS, CHANNELS, (9, 9), 1, 1),
    (CHANNELS, CHANNELS, (1, 1), 1, 1),
)


def dense_layer(rng, source: Tensor, at: int, number: int, shape) -> tuple[Tensor, Layer]:
    """Every second row has the largest weights; every third layer has a narrower range of outputs."""
    channels, groups, kernel, stride, dilation = shape
    pad = tuple((k - 1) * dilation // 2 for k in kernel)
    size = [
        max(1, (n + 2 * p - (k - 1) * dilation - 1) // stride + 1)
        for n, p, k in zip(source.shape[1:], pad, kernel, strict=True)
    ]
    weight = rng.integers(-127, 128, (channels, source.channels // groups, *kernel)).astype(np.int8)
    weight[::2] = rng.choice(EXTREMES, weight[::2].shape)
    scales = tuple(quantise_multiplier(float(s)) for s in 1 / rng.uniform(2000, 9000, channels))
    low = -100 if number % 3 == 0 else -128
    layer = Layer(
        CONV, f"conv{number}", (at,), number, low, 127, kernel, (stride, stride), pad, scales, weight,
        rng.integers(-2000, 2000, channels), groups=groups, dilation=(dilation, dilation),
    )  # fmt: skip
    return Tensor(channels, *size, 0.05, int(rng.integers(-128, 128))), layer


def maps(rng) -> Network:
    """Each layer of a map that is pooled until it is a single value."""
    tensors, layers, at = {0: Tensor(CHANNELS, 9, 17, 0.05, -128)}, [], 0
    while True:
        source = tensors[at]
        for shape in LAYERS:
            number = len(tensors)
            tensors[number], layer = dense_layer(rng, source, at, number, shape)
            layers.append(layer)
        if source.height == 1 and source.width == 1:
            return Network(tensors, 0, len(tensors) - 1, layers)
        number, size = len(tensors), [(n + 1) // 2 for n in (source.height, source.width)]
        tensors[number] = Tensor(CHANNELS, *size, 0.05, source.zero_point)
        pool = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "clipped": True}
        layers.append(Layer(MAX_POOL, "pool", (at,), number, -128, 127, **pool))
        at = number


@pytest.mark.parametrize("bordered", [True, False])
def test_dense_layers_on_maps_of_any_size(each_kernel, compiler, open_on, bordered):
    rng = np.random.default_rng(6)
    network = maps(rng)
    image = write(
        network, "speed", plan=plan if bordered else without_borders, forms=lambda weight: [forms(weight)[DENSE]]
    )
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,) * 3, (1.0,) * 3, 0.05, -128))
    with open_on(bundle, each_kernel, compiler, SMALLEST_HEAD, measure(image, SMALLEST_HEAD).total) as device:
        for values in inputs(rng, network.tensors[0].shape):
            assert not wrong_layers(device, network, values)
