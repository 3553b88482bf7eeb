"""What the tests of several parts share: integer networks made without TensorFlow, a numpy reference."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from entropi.device import Bundle, HeadConfig, HostDevice
from entropi.device.bundle import Preprocessing
from entropi.export.graph import Graph
from entropi.export.image import Centering, Optimize, write_image
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
    WINDOWED,
    Layer,
    Network,
    Tensor,
    cropped,
    quantise_multiplier,
)
from entropi.export.softmax import exponentials
from entropi.firmware_sim.session import FramedDevice

ADD_SCALES = tuple(quantise_multiplier(x) for x in (0.5, 0.5, 2 / (1 << 20)))
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


def wrong_layers(device: FramedDevice, network: Network, values: np.ndarray) -> list[str]:
    """The layers whose outputs on a device are not the reference's, by their CRCs; of a concatenation, the last."""
    whole = set(network.last_writers().values())
    expected = [zlib.crc32(y.astype(np.int8).tobytes()) for y in reference(network, values)]
    found = [run.crc for run in device.run_layers(values)]
    return [
        f"{layer.name} of {network.tensors[layer.inputs[0]].shape}, {layer.kernel}, stride {layer.stride[0]}"
        for number, (layer, a, b) in enumerate(zip(network.layers, found, expected, strict=True))
        if a != b and number in whole
    ]


def conv_layer(
    rng, source: Tensor, number: int, out: Tensor, inputs, kernel, stride, pad, density, dilation=(1, 1), groups=1,
    largest=127,
) -> Layer:  # fmt: skip
    """A convolution whose sums use the whole int8 range; row 0 is empty, as dead channels are."""
    weight = rng.integers(-largest, largest + 1, (out.channels, source.channels // groups, *kernel)).astype(np.int8)
    weight[rng.random(weight.shape) >= density] = 0
    weight[0] = 0
    bias = rng.integers(-2000, 2000, out.channels) - source.zero_point * weight.astype(np.int64).sum(axis=(1, 2, 3))
    width = 60 * 60 * largest / 127 * max(1.0, density * weight[0].size) ** 0.5
    scales = tuple(quantise_multiplier(float(s)) for s in rng.uniform(40, 120, out.channels) / width)
    fields = {"scales": scales, "weight": weight, "bias": bias, "dilation": dilation, "groups": groups}
    return Layer(CONV, f"conv{number}", inputs, number, -128, 127, kernel, stride, pad, **fields)


def write(network: Network, optimize: Optimize = "size", **decisions) -> bytes:
    """The network's image, its features not centred; `decisions` are write_image's plan and forms."""
    out = network.tensors[network.output]
    centering = Centering(np.zeros(out.channels * out.height * out.width, np.int8), 0.01)
    return write_image(network, centering, optimize, **decisions)[0]


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


EVERY_LAYER = residual_network(seed=6, channels=4, size=8)


def opened(network: Network, optimize: Optimize = "size", **decisions) -> HostDevice:
    """The runtime with the network in it; `decisions` are write_image's plan and forms."""
    bundle = Bundle(Path(), write(network, optimize, **decisions), {}, Preprocessing((0.0,), (1.0,), 1.0, 0))
    return HostDevice(bundle, "1MiB", head=HeadConfig(2, 1))


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
    largest = draw(st.sampled_from([127, 15]))
    return to, conv_layer(rng, t, number, to, (source,), kernel, stride, pad, 0.5, dilation, groups, largest)


KINDS = (CONV, CONV, MAX_POOL, AVERAGE_POOL, MEAN, TABLE, TABLE, COPY, COPY, ADD, ADD, SUB, MUL)


@st.composite
def skipping_networks(draw, kinds: tuple[int, ...] = KINDS) -> Network:
    """Networks of `kinds` of layers, windows of any size; layers of more inputs take any that fit, near or far."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    tensors = {0: Tensor(draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9)), 0.05, -7)}
    network = Network(tensors, 0, 0)
    for number in range(1, draw(st.integers(1, 7)) + 1):
        source = draw(st.sampled_from(sorted(tensors)))
        t = tensors[source]
        seconds = [i for i, u in tensors.items() if all(n in (1, m) for n, m in zip(u.shape, t.shape, strict=True))]
        kind = draw(st.sampled_from(kinds))
        to = Tensor(*t.shape, 0.05, draw(st.sampled_from([-100, -7, 90])))
        layer = Layer(kind, f"layer{number}", (source,), number, -128, 127)
        if kind in (ADD, SUB, MUL):
            scales = (quantise_multiplier(0.01),) if kind == MUL else ADD_SCALES
            layer = replace(layer, inputs=(source, draw(st.sampled_from(seconds))), scales=scales)
        elif kind == TABLE:
            layer = replace(layer, table=rng.integers(-128, 128, 256).astype(np.int8))
        elif kind == SOFTMAX:
            layer = replace(layer, table=exponentials(0.05, 1.0))
        elif kind == COPY:
            fitting = [i for i, u in tensors.items() if (*u.shape[1:], u.zero_point) == (*t.shape[1:], t.zero_point)]
            parts = [source, *draw(st.lists(st.sampled_from(fitting), max_size=2))]
            firsts = np.cumsum([0] + [tensors[i].channels for i in parts]).tolist()
            copies = [replace(layer, inputs=(i,), first=first) for i, first in zip(parts, firsts, strict=False)]
            to = Tensor(firsts[-1], *t.shape[1:], 0.05, t.zero_point)
            network.layers += copies[:-1]
            layer = copies[-1]
        elif kind == MEAN:
            to = Tensor(t.channels, 1, 1, 0.05, 3)
            layer = replace(layer, scales=(quantise_multiplier(1 / (t.height * t.width)),))
        else:
            to, layer = window_layer(draw, rng, kind, source, t, number)
        tensors[number] = to
        network.layers.append(layer)
    network.output = draw(st.sampled_from(sorted(tensors)))
    return network


def shapes_of(graph: Graph) -> Network:
    """The layers that the converter makes of a torch graph, without what they compute: enough for a memory plan.

    ReLUs are part of the layer before; other activations are one table, SiLU a table and a product."""
    numbers = {graph.input: 0}
    tensors = {0: Tensor(*graph.input_shape, 0.05, 0)}
    network = Network(tensors, 0, 0)

    def append(kind: int, name: str, inputs: list[int], shape: tuple[int, ...], **fields) -> int:
        number = len(tensors)
        tensors[number] = Tensor(*shape, *(1,) * (3 - len(shape)), 0.05, 0)
        network.layers.append(Layer(kind, name, tuple(inputs), number, -128, 127, **fields))
        return number

    kinds = {"max_pool": MAX_POOL, "average_pool": AVERAGE_POOL, "mean": MEAN, "add": ADD, "sub": SUB, "mul": MUL}
    for node in graph.nodes:
        inputs = sorted((numbers[name] for name in node.inputs), key=lambda i: -tensors[i].height)
        if node.op in ("relu", "relu6"):
            number = inputs[0]
        elif node.op == "conv":
            window = {"stride": node.stride, "pad": node.padding, "dilation": node.dilation, "groups": node.groups}
            weight = np.zeros(node.weight.shape, np.int8)
            number = append(CONV, node.name, inputs, node.shape, kernel=node.kernel, weight=weight, **window)
            network.layers[-1] = cropped(network.layers[-1], tensors[inputs[0]], tensors[number])
        elif node.op == "concat":
            first = 0
            number = append(COPY, node.name, [numbers[node.inputs[0]]], node.shape)
            part = network.layers.pop()
            for source in (numbers[name] for name in node.inputs):
                network.layers.append(replace(part, inputs=(source,), first=first))
                first += tensors[source].channels
        elif node.op in kinds:
            window = {"kernel": node.kernel, "stride": node.stride, "pad": node.padding}
            number = append(kinds[node.op], node.name, inputs, node.shape, **window)
        else:
            number = append(TABLE, node.name, inputs, node.shape)
            if node.op == "silu":
                number = append(MUL, node.name, [inputs[0], number], node.shape)
        numbers[node.name] = number
    network.output = numbers[graph.output]
    return network
