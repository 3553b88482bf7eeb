"""The device image against a decoder written from docs/image-format.md."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import residual_network, write

from entropi.device import describe
from entropi.export.image import Centering, ImageError, encode_rows, write_image
from entropi.export.integer import (
    AVERAGE_POOL,
    CONV,
    COPY,
    MAX_POOL,
    MEAN,
    TABLE,
    Layer,
    Network,
    Tensor,
    quantise_multiplier,
)
from entropi.export.plan import plan


def decode_rows(data: bytes, rows: int, row_length: int) -> np.ndarray:
    """Sparse rows back to int8 [rows, row_length]."""
    (delta_bytes,) = struct.unpack_from("<I", data)
    counts = struct.unpack_from(f"<{rows}H", data, 4)
    deltas = iter(data[4 + 2 * rows : 4 + 2 * rows + delta_bytes])
    values = iter(data[4 + 2 * rows + delta_bytes :])
    weight = np.zeros((rows, row_length), np.int8)
    for row, count in zip(weight, counts, strict=True):
        at = 0
        for _ in range(count):
            while (delta := next(deltas)) == 255:
                at += 255
            at += delta
            value = next(values)
            row[at] = value - 256 if value > 127 else value
            at += 1
    assert not list(deltas) and not list(values)
    return weight


def decode(image: bytes) -> dict:
    """Every field of an image, by its offset in the document."""

    def u(at, size):
        return int.from_bytes(image[at : at + size], "little")

    def i(at, size):
        return int.from_bytes(image[at : at + size], "little", signed=True)

    def f(at):
        return struct.unpack_from("<f", image, at)[0]

    assert image[:4] == b"ENTR" and u(4, 2) == 2 and u(6, 2) == 64 and u(8, 4) == len(image)
    assert u(len(image) - 4, 4) == zlib.crc32(image[:-4])
    assert image[53:64] == bytes(11)
    found = {
        "input": u(16, 2), "output": u(18, 2), "activation_bytes": u(20, 4), "row_entries": u(24, 4),
        "features": u(28, 4), "input_scale": f(32), "gain": f(36), "input_zero_point": i(52, 1),
    }  # fmt: skip
    found["centers"] = np.frombuffer(image, np.int8, found["features"], u(40, 4))
    tensors = found["tensors"] = []
    for number in range(u(12, 2)):
        at = u(44, 4) + 16 * number
        shape = (u(at + 4, 2), u(at + 6, 2), u(at + 8, 2))
        tensors.append(
            {"offset": u(at, 4), "shape": shape, "border": tuple(image[at + 10 : at + 14]), "zero_point": i(at + 14, 1)}
        )
        assert image[at + 15] == 0
    layers = found["layers"] = []
    for number in range(u(14, 2)):
        at = u(48, 4) + 32 * number
        layer = {
            "kind": image[at], "encoding": image[at + 1], "input": u(at + 2, 2), "second": u(at + 4, 2),
            "output": u(at + 6, 2), "kernel": (image[at + 8], image[at + 9]),
            "stride": (image[at + 10], image[at + 11]), "pad": (image[at + 12], image[at + 13]),
            "dilation": (image[at + 14], image[at + 15]), "groups": u(at + 16, 2),
            "clamp": (i(at + 18, 1), i(at + 19, 1)),
        }  # fmt: skip
        parameters, weights, length = u(at + 20, 4), u(at + 24, 4), u(at + 28, 4)
        if layer["kind"] == 1:
            assert parameters % 4 == weights % 4 == 0
            rows = tensors[layer["output"]]["shape"][0]
            shape = (rows, tensors[layer["input"]]["shape"][0] // layer["groups"], *layer["kernel"])
            layer["bias"] = [i(parameters + 4 * r, 4) for r in range(rows)]
            layer["scales"] = [
                (i(parameters + 4 * (rows + r), 4), i(parameters + 8 * rows + r, 1)) for r in range(rows)
            ]
            data = image[weights : weights + length]
            flat = np.frombuffer(data, np.int8) if layer["encoding"] else decode_rows(data, rows, np.prod(shape[1:]))
            layer["weight"] = flat.reshape(shape)
        else:
            assert (weights, length) == (0, 0) and layer["encoding"] <= (layer["kind"] in (2, 5))
            count = {2: 0, 3: 3, 4: 1, 5: 0, 6: 3, 7: 1, 8: 0, 9: 0}[layer["kind"]]
            layer["table"] = np.frombuffer(image, np.int8, 256, parameters) if layer["kind"] == 8 else None
            layer["scales"] = [(i(parameters + 8 * k, 4), i(parameters + 8 * k + 4, 4)) for k in range(count)]
        layers.append(layer)
    return found


def gaps_row(gaps: list[int], values: list[int]) -> np.ndarray:
    parts = [np.r_[np.zeros(gap, np.int8), np.int8(value)] for gap, value in zip(gaps, values, strict=True)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int8)


GAPS = st.one_of(st.integers(0, 1100), st.sampled_from([0, 254, 255, 256, 509, 510, 511, 765, 1000]))
VALUES = st.integers(-128, 127).filter(bool)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(st.lists(st.tuples(GAPS, VALUES), max_size=8), min_size=1, max_size=6), tail=st.integers(0, 300))
@example(rows=[[(g, -128)] for g in (0, 254, 255, 256, 510, 1000)], tail=0)
@example(rows=[[(g, 1) for g in (0, 254, 255, 256, 510, 1000)], []], tail=255)
def test_rows_come_back(rows, tail):
    flat = [gaps_row([gap for gap, _ in row], [value for _, value in row]) for row in rows]
    length = max(map(len, flat)) + tail
    weight = np.stack([np.pad(row, (0, length - len(row))) for row in flat])
    np.testing.assert_array_equal(decode_rows(encode_rows(weight), len(rows), length), weight)


@pytest.mark.parametrize(
    ("gap", "deltas"),
    [(0, [0]), (254, [254]), (255, [255, 0]), (256, [255, 1]), (510, [255, 255, 0]), (1000, [255, 255, 255, 235])],
)
def test_a_gap_in_bytes(gap, deltas):
    expected = struct.pack("<IH", len(deltas), 1) + bytes(deltas) + b"\x07"
    assert encode_rows(gaps_row([gap], [7])[None]) == expected


@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_an_image_holds_the_network(density):
    network = residual_network(seed=5, channels=20, size=7, density=density)
    rng = np.random.default_rng(0)
    centering = Centering(rng.integers(-128, 128, 80).astype(np.int8), 0.0125)
    image, reports = write_image(network, centering)
    found = decode(image)
    places, activation_bytes = plan(network)

    assert found["activation_bytes"] == activation_bytes
    assert (found["input"], found["output"], found["features"]) == (network.input, network.output, 80)
    assert (found["input_scale"], found["gain"]) == (np.float32(0.05), np.float32(0.0125))
    assert found["input_zero_point"] == network.tensors[0].zero_point
    np.testing.assert_array_equal(found["centers"], centering.centers)
    for number, record in enumerate(found["tensors"]):
        t, place = network.tensors[number], places[number]
        expected = {"offset": place.offset, "shape": t.shape, "border": place.border, "zero_point": t.zero_point}
        assert record == expected
    for layer, record, report in zip(network.layers, found["layers"], reports, strict=True):
        assert (record["kind"], record["input"], record["output"]) == (layer.kind, layer.inputs[0], layer.output)
        second = layer.inputs[1] if len(layer.inputs) > 1 else 0xFFFF
        assert record["second"] == (layer.first if layer.kind == COPY else second)
        assert (record["kernel"], record["stride"], record["pad"]) == (layer.kernel, layer.stride, layer.pad)
        assert (record["dilation"], record["groups"]) == (layer.dilation, layer.groups)
        assert record["clamp"] == (layer.low, layer.high)
        assert tuple(record["scales"]) == layer.scales
        if layer.kind in (MAX_POOL, AVERAGE_POOL):
            assert record["encoding"] == layer.clipped
        if layer.kind == TABLE:
            np.testing.assert_array_equal(record["table"], layer.table)
        if layer.kind == CONV:
            assert report.encoding == ("sparse", "dense")[record["encoding"]]
            np.testing.assert_array_equal(record["bias"], layer.bias)
            np.testing.assert_array_equal(record["weight"], layer.weight)
    sparse = [r for r, layer in zip(found["layers"], network.layers, strict=True) if layer.kind == CONV]
    longest = [np.count_nonzero(r["weight"], axis=(1, 2, 3)).max() for r in sparse if not r["encoding"]]
    assert found["row_entries"] == max(longest, default=0)

    info = describe(image)
    stored = [r.weights if r.encoding == "dense" else r.nonzeros for r in reports]
    assert (info.stored_weights, info.macs) == (sum(stored), sum(r.macs for r in reports))


def conv(source: Tensor, out: Tensor, **fields) -> Network:
    """A network of one convolution, 1x1 and of ones unless `fields` say otherwise."""
    weight = fields.pop("weight", np.ones((out.channels, source.channels, 1, 1), np.int8))
    fields = {"bias": np.zeros(out.channels, np.int64), "scales": ((1 << 30, 0),) * out.channels, **fields}
    layer = Layer(CONV, "conv7", (0,), 1, -128, 127, kernel=weight.shape[2:], weight=weight, **fields)
    return Network({0: source, 1: out}, 0, 1, [layer])


def pixel(channels: int = 1, size: int = 1) -> Tensor:
    return Tensor(channels, size, size, 0.1, 0)


def big_kernel() -> Network:
    return conv(pixel(size=12), pixel(), weight=np.ones((1, 1, 11, 12), np.int8))


def many_nonzeros() -> Network:
    return conv(pixel(65536), pixel(), weight=np.ones((1, 65536, 1, 1), np.int8))


def wide_tensor() -> Network:
    return Network({0: Tensor(70000, 1, 1, 0.1, 0)}, 0, 0)


def long_mean() -> Network:
    layer = Layer(MEAN, "mean7", (0,), 1, -128, 127, scales=((1 << 30, 0),))
    return Network({0: pixel(size=1449), 1: pixel()}, 0, 1, [layer])


def deep_border() -> Network:
    layer = Layer(MAX_POOL, "pool7", (0,), 1, -128, 127, kernel=(255, 1), stride=(255, 1))
    return Network({0: Tensor(1, 200, 1, 0.1, 0), 1: Tensor(1, 4, 1, 0.1, 0)}, 0, 1, [layer])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (big_kernel, r"conv7: a kernel of 132 taps; the format holds 121 \(11x11\)"),
        (many_nonzeros, r"a row has 65536 non-zero weights; the format holds 65535"),
        (lambda: conv(pixel(), pixel(), bias=np.array([1 << 31])), r"conv7: sums reach 2147483776; int32 holds 214748"),
        (lambda: conv(pixel(), pixel(), bias=np.array([-(1 << 31) + 128])), r"conv7: sums reach 2147483648; "),
        (
            lambda: conv(pixel(), pixel(), stride=(1, 256)),
            r"conv7: kernel, stride, .* of 256; .* holds 255",
        ),
        (lambda: conv(pixel(2, 4000), pixel()), r"conv7: an input of 32000000 bytes; the format holds 16777216"),
        (wide_tensor, r"tensor 0: shape \(70000, 1, 1\) or border .* exceeds the format's 65535 and 255"),
        (long_mean, r"mean7: a mean of 2099601 values; the format holds 2097151"),
        (deep_border, r"tensor 0: .* border \(0, 0, 820, 0\) exceeds the format's 65535 and 255"),
    ],
)
def test_a_limit_is_told_with_the_number(network, message):
    with pytest.raises(ImageError, match=message):
        write(network())


def test_what_just_fits_is_accepted_by_the_runtime():
    for shift, rounding in ((0, 0), (-1, 1), (-12, 2048), (-31, 1 << 30), (3, 0)):
        bias = np.array([(1 << 31) - 1 - 128 - rounding])
        fields = {"scales": ((1 << 30, shift),)}
        assert describe(write(conv(pixel(), pixel(), bias=bias, **fields))).stored_weights == 1
        with pytest.raises(ImageError, match="conv7: sums reach 2147483648; int32 holds 2147483647; lower weights"):
            write(conv(pixel(), pixel(), bias=-bias - 1, **fields))
    assert describe(write(conv(pixel(), pixel(), stride=(255, 255)))).macs == 1
    edge = conv(pixel(size=11), pixel(), weight=np.ones((1, 1, 11, 11), np.int8))
    assert describe(write(edge)).stored_weights == 121


def test_centering_is_of_mean_squared_norm_one():
    features = np.random.default_rng(0).integers(-128, 128, (50, 12)).astype(np.int8)
    centering = Centering.of(features)
    seen = (features.astype(float) - centering.centers) * centering.gain
    assert np.abs(seen.mean(axis=0) / centering.gain).max() <= 0.5
    assert (seen**2).sum(axis=1).mean() == pytest.approx(1)
    constant = Centering.of(np.full((3, 4), 9, np.int8))
    assert constant.gain == 1.0 and (constant.centers == 9).all()


def worked_example() -> bytes:
    """The image that docs/image-format.md takes apart."""
    weight = np.zeros((2, 2, 3, 3), np.int8)
    weight[0, 0, 0, 1], weight[0, 1, 1, 1], weight[1, 0, 2, 2] = 5, -7, 127
    scales = tuple(quantise_multiplier(x) for x in (0.25, 0.01))
    layer = Layer(CONV, "conv", (0,), 1, -128, 127, (3, 3), (1, 1), (1, 1), scales, weight, np.array([10, -20]))
    tensors = {0: Tensor(2, 2, 2, 0.5, -1), 1: Tensor(2, 2, 2, 0.25, 3)}
    centers = np.arange(8).astype(np.int8) - 4
    return write_image(Network(tensors, 0, 1, [layer]), Centering(centers, 0.125))[0]


def test_the_documents_example_is_what_the_code_writes():
    document = (Path(__file__).parents[2] / "docs" / "image-format.md").read_text()
    dump = document.split("```hexdump\n")[1].split("```")[0]
    assert bytes.fromhex("".join(line.split("  ")[1] for line in dump.splitlines())) == worked_example()
    assert [int(line[:4], 16) for line in dump.splitlines()] == list(range(0, len(worked_example()), 16))


def test_tensor_numbers_need_not_be_dense():
    """A TFLite model numbers its weights among its activations; the image counts activations alone."""
    network = residual_network(seed=3)
    moved = Network({10 * i: t for i, t in network.tensors.items()}, 0, 130)
    moved.layers = [
        replace(layer, inputs=tuple(10 * i for i in layer.inputs), output=10 * layer.output) for layer in network.layers
    ]
    assert write(moved) == write(network)
