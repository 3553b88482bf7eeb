"""The kernels that cores with DSP instructions have, and those of the others, give what the definition says."""

from pathlib import Path

import numpy as np
import pytest
from bare import inputs, without_borders
from networks import ADD_SCALES, conv_layer, write, wrong_layers

from entropi.device import SMALLEST_HEAD, Bundle, measure
from entropi.device.bundle import Preprocessing
from entropi.export.integer import ADD, CONV, MAX_POOL, Layer, Network, Tensor, quantise_multiplier
from entropi.export.plan import plan

CHANNELS = 13


def sparse_layer(
    rng, source: Tensor, at: int, number: int, kernel: int, stride: int, bits: int, **fields
) -> tuple[Tensor, Layer]:
    """Row r has 3 r weights of so many bits, so that the last step of an unrolled loop is each of its steps in turn.
    Those of every fourth row are the least, and those of another fourth the least and the largest; the first row has
    none."""
    pad, size = kernel // 2, [(n - 1) // stride + 1 for n in (source.height, source.width)]
    weight = np.zeros((CHANNELS, source.channels * kernel * kernel), np.int8)
    least, most = -(1 << bits - 1), (1 << bits - 1) - 1
    for r in range(CHANNELS):
        chosen = rng.choice(weight.shape[1], min(3 * r, weight.shape[1]), replace=False)
        values = ([least], rng.integers(least, most + 1, 9), [least, most], rng.integers(least, most + 1, 9))[r % 4]
        weight[r, chosen] = rng.choice(values, len(chosen))
    weight = weight.reshape(CHANNELS, source.channels, kernel, kernel)
    scales = tuple(quantise_multiplier(float(s)) for s in 2.0 ** (8 - bits) / rng.uniform(200, 800, CHANNELS))
    layer = Layer(
        CONV, f"conv{number}", (at,), number, fields.get("low", -128), 127, (kernel, kernel), (stride, stride),
        (pad, pad), scales, weight, rng.integers(-2000, 2000, CHANNELS),
    )  # fmt: skip
    return Tensor(CHANNELS, *size, 0.05, int(rng.integers(-128, 128))), layer


def maps(rng, bits: int) -> Network:
    """Convolutions with strides of 1, 2 and 3 of a map that is pooled until it is a single value; sums of two. The
    first one has so many weights that the columns of its input are split."""
    source, out = Tensor(3, 10, 17, 0.05, -128), Tensor(60, 5, 9, 0.05, 3)
    tensors, at = {0: source, 1: out}, 0
    layers = [conv_layer(rng, source, 1, out, (0,), (5, 5), (2, 2), (2, 2), 0.3)]
    while True:
        source, first = tensors[at], len(tensors)
        for kernel, stride in ((3, 1), (5, 2), (3, 2), (1, 1), (3, 3)):
            number = len(tensors)
            low = -128 + 40 * (kernel == 5)
            tensors[number], layer = sparse_layer(rng, source, at, number, kernel, stride, bits, low=low)
            layers.append(layer)
            if kernel == 1:
                number, like = len(tensors), tensors[number]
                tensors[number] = Tensor(*like.shape, 0.05, -20)
                layers.append(Layer(ADD, "add", (first, number - 1), number, -128, 127, scales=(*ADD_SCALES,)))
        if source.height == 1 and source.width == 1:
            return Network(tensors, 0, len(tensors) - 1, layers)
        number, size = len(tensors), [(n + 1) // 2 for n in (source.height, source.width)]
        tensors[number] = Tensor(source.channels, *size, 0.05, source.zero_point)
        pool = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1), "clipped": True}
        layers.append(Layer(MAX_POOL, "pool", (at,), number, -128, 127, **pool))
        at = number


@pytest.mark.parametrize(
    ("optimize", "bordered", "bits"), [("speed", True, 8), ("size", False, 8), ("speed", True, 5), ("size", False, 5)]
)
def test_sparse_layers_on_maps_of_any_size(each_kernel, compiler, open_on, optimize, bordered, bits):
    rng = np.random.default_rng(5)
    network = maps(rng, bits)
    image = write(network, optimize, plan=plan if bordered else without_borders)
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,) * 3, (1.0,) * 3, 0.05, -128))
    with open_on(bundle, each_kernel, compiler, SMALLEST_HEAD, measure(image, SMALLEST_HEAD).total) as device:
        for values in inputs(rng, network.tensors[0].shape):
            assert not wrong_layers(device, network, values)


def test_outputs_over_inputs(each_kernel, compiler, open_on):
    """A depthwise layer whose inputs the kernel changes while it runs writes over them."""
    rng = np.random.default_rng(0)
    tensors = {number: Tensor(channels, 8, 8, 0.05, -7) for number, channels in enumerate((2, 12, 12))}
    points = conv_layer(rng, tensors[0], 1, tensors[1], (0,), (1, 1), (1, 1), (0, 0), 1.0)
    depthwise = conv_layer(
        rng, tensors[1], 2, tensors[2], (1,), (3, 3), (1, 1), (1, 1), 0.4, groups=12, largest=15
    )  # fmt: skip
    network = Network(tensors, 0, 2, [points, depthwise])
    places = plan(network, "speed").places
    assert places[1].offset < places[2].end and places[2].offset < places[1].end
    image = write(network, "speed")
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,) * 2, (1.0,) * 2, 0.05, -7))
    with open_on(bundle, each_kernel, compiler, SMALLEST_HEAD, measure(image, SMALLEST_HEAD).total) as device:
        for values in inputs(rng, tensors[0].shape):
            assert not wrong_layers(device, network, values)
