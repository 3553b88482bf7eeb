"""The device image against a decoder written from docs/image-format.md."""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import opened, requantise, residual_network, write

from entropi.device import describe
from entropi.export.image import Centering, ImageError, write_image
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
from entropi.export.rows import encode_scales, forms, row_scales, shannon_bound


def pairs(data: bytes) -> list[tuple[int, int]]:
    """Distances and values."""
    entries = [(distance, value) for value, distance in struct.iter_unpack("<bB", data[2:])]
    assert data[0] == 0 and all(-1 << data[1] - 1 <= value < 1 << data[1] - 1 for _, value in entries)
    return entries


def codes(data: bytes) -> list[tuple[int, int]]:
    """Distances and values, up to the end of a list: 7 bits of zeros or fewer."""
    k, value_bits, bits = *data[:2], "".join(f"{byte:08b}" for byte in data[2:])
    entries, at = [], 0
    while "1" in bits[at:]:
        q = bits.index("1", at) - at
        assert q + 1 + k + value_bits <= 25
        at += q + 1 + k
        remainder, value = bits[at - k : at], int(bits[at : at + value_bits], 2)
        at += value_bits
        sign = 1 << value_bits - 1
        entries.append(((q << k) + int(remainder or "0", 2) + 1, (value ^ sign) - sign))
    assert len(bits) - at < 8
    return entries


def decode_rows(data: bytes, encoding: int, shape: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights int8 of `shape`, and how many of each row are stored."""
    rows, channels, *kernel = shape
    length = channels * kernel[0] * kernel[1]
    if encoding == 0:
        return np.frombuffer(data, np.int8).reshape(shape), np.full(rows, length)
    entries = (pairs if encoding == 1 else codes)(data)
    weight, stored, at = np.zeros(rows * length, np.int8), np.zeros(rows, int), -1
    for distance, value in entries[:-1]:
        assert distance > 0
        at += distance
        weight[at] = value
        stored[at // length] += 1
    assert (at + entries[-1][0], entries[-1][1]) == (rows * length, 0)
    return weight.reshape(rows, *kernel, channels).transpose(0, 3, 1, 2), stored


def decode_scales(data: bytes, stored: list[bool]) -> list[int | tuple[int, int, int]]:
    """Of every row the constant, or bias, multiplier and shift; `data` may go on behind them."""
    lowest, size, bits = struct.unpack_from("<bBB", data)
    rows, at = [], 4
    for is_stored in stored:
        if not is_stored:
            rows += struct.unpack_from("<b", data, at)
            at += 1
            continue
        (multiplier,) = struct.unpack_from("<i", data, at)
        field = int.from_bytes(data[at + 4 : at + 4 + size], "little", signed=True)
        at += 4 + size
        if bits == 8:
            rows.append((field, multiplier, lowest + data[at]))
            at += 1
        else:
            rows.append((field >> bits, multiplier, lowest + field % (1 << bits)))
    return rows


def decode(image: bytes) -> dict:
    """Every field of an image, by its offset in the document."""

    def u(at, size):
        return int.from_bytes(image[at : at + size], "little")

    def i(at, size):
        return int.from_bytes(image[at : at + size], "little", signed=True)

    def f(at):
        return struct.unpack_from("<f", image, at)[0]

    assert image[:4] == b"ENTR" and u(4, 2) == 6 and u(6, 2) == 64 and u(8, 4) == len(image)
    assert u(len(image) - 4, 4) == zlib.crc32(image[:-4])
    assert image[53:64] == bytes(11)
    found = {
        "input": u(16, 2), "output": u(18, 2), "activation_bytes": u(20, 4), "features": u(24, 4),
        "input_scale": f(28), "gain": f(32), "input_zero_point": i(52, 1),
    }  # fmt: skip
    found["centers"] = np.frombuffer(image, np.int8, found["features"], u(36, 4))
    found["scales"] = np.frombuffer(image, np.uint8, found["features"], u(40, 4))
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
        at = u(48, 4) + 36 * number
        layer = {
            "kind": image[at], "encoding": image[at + 1], "input": u(at + 2, 2), "second": u(at + 4, 2),
            "output": u(at + 6, 2), "kernel": (image[at + 8], image[at + 9]),
            "stride": (image[at + 10], image[at + 11]), "pad": (image[at + 12], image[at + 13]),
            "dilation": (image[at + 14], image[at + 15]), "groups": u(at + 16, 2),
            "clamp": (i(at + 18, 1), i(at + 19, 1)), "scratch_at": u(at + 32, 4),
        }  # fmt: skip
        parameters, weights, length = u(at + 20, 4), u(at + 24, 4), u(at + 28, 4)
        if layer["kind"] == 1:
            assert parameters % 4 == weights % 4 == 0
            rows = tensors[layer["output"]]["shape"][0]
            shape = (rows, tensors[layer["input"]]["shape"][0] // layer["groups"], *layer["kernel"])
            layer["weight_bytes"] = length
            layer["weight"], layer["stored"] = decode_rows(image[weights : weights + length], layer["encoding"], shape)
            layer["rows"] = decode_scales(image[parameters:], layer["stored"] > 0)
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
VALUES = st.integers(2, 8).flatmap(lambda bits: st.integers(-1 << bits - 1, (1 << bits - 1) - 1).filter(bool))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(GAPS, VALUES), max_size=8), min_size=1, max_size=6),
    tail=st.integers(0, 300),
    taps=st.sampled_from([(1, 1), (3, 3), (1, 2)]),
)
@example(rows=[[(g, -128)] for g in (0, 254, 255, 256, 510, 1000)], tail=0, taps=(1, 1))
@example(rows=[[(g, 1) for g in (0, 254, 255, 256, 510, 1000)], []], tail=255, taps=(3, 3))
@example(rows=[[(200000, 1)] + [(0, 1)] * 9, [(200000, 1)]], tail=1, taps=(3, 3))
@example(rows=[[]], tail=0, taps=(1, 1))
def test_rows_come_back_from_every_form(rows, tail, taps):
    flat = [gaps_row([gap for gap, _ in row], [value for _, value in row]) for row in rows]
    channels = -(-(max(map(len, flat)) + tail + 1) // (taps[0] * taps[1]))
    length = channels * taps[0] * taps[1]
    weight = np.stack([np.pad(row, (0, length - len(row))) for row in flat]).reshape(len(rows), channels, *taps)
    for number, form in enumerate(forms(weight)):
        data = form.encode()
        assert (form.encoding, form.bytes) == (number, len(data))
        found, stored = decode_rows(data, number, weight.shape)
        np.testing.assert_array_equal(found, weight)
        np.testing.assert_array_equal(form.entries, stored)
        if number:
            fewest = next(n for n in range(2, 9) if -1 << n - 1 <= weight.min() and weight.max() < 1 << n - 1)
            assert data[1] == fewest


DOCUMENT = (Path(__file__).parents[2] / "docs" / "image-format.md").read_text()


def test_the_documents_pairs_are_what_the_code_writes():
    rows = re.findall(r"^\| (\d+) \| ((?:`[0-9a-f ]+` ?)+) \|$", DOCUMENT, re.MULTILINE)
    assert [int(distance) for distance, _ in rows] == [1, 255, 256, 600]
    for distance, data in rows:
        weight = gaps_row([int(distance) - 1], [7]).reshape(1, -1, 1, 1)
        assert forms(weight)[1].encode() == bytes.fromhex("0004" + data.replace("`", "") + "0001")


def test_the_documents_codes_mean_what_it_says():
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\d+) \| (-?\d+) \| ((?:`[01 ]+` ?)+)", DOCUMENT, re.MULTILINE)
    assert len(rows) == 4
    for k, value_bits, distance, value, code in rows:
        bits = re.sub("[` ]", "", code)
        bits += "0" * (-len(bits) % 8)
        data = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
        distances, values = zip(*codes(bytes([int(k), int(value_bits)]) + data), strict=True)
        assert (sum(distances), values[-1], any(values[:-1])) == (int(distance), int(value), False)


SCALE = st.tuples(
    st.one_of(st.integers(-(1 << 31), (1 << 31) - 1), st.integers(-300, 300)),
    st.integers(0, (1 << 31) - 1),
    st.one_of(st.integers(-31, 30), st.integers(-9, -7)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(SCALE, st.integers(-128, 127)), min_size=1, max_size=9))
@example([(0, 0, 0)])
@example([-128])
@example([(-(1 << 31), 1 << 30, -31), ((1 << 31) - 1, 0, 30)])
@example([((1 << 30) - 1, 1, 4), (-(1 << 30), 1, 5)])
def test_scales_come_back(rows):
    assert decode_scales(encode_scales(rows), [isinstance(row, tuple) for row in rows]) == rows


@pytest.mark.parametrize("optimize", ["size", "speed"])
@pytest.mark.parametrize("density", [0.02, 0.3, 1.0])
def test_an_image_holds_the_network(density, optimize):
    network = residual_network(seed=5, channels=20, size=7, density=density)
    rng = np.random.default_rng(0)
    scales = rng.integers(0, 256, 80).astype(np.uint8)
    centering = Centering(rng.integers(-128, 128, 80).astype(np.int8), 0.0125, scales)
    image, reports = write_image(network, centering, optimize)
    found = decode(image)
    words = {number: scratch_words(record) for number, record in enumerate(found["layers"]) if record["kind"] == CONV}
    planned = plan(network, optimize, {number: 4 * count for number, count in words.items()})
    places = planned.places

    assert found["activation_bytes"] == planned.bytes
    assert (found["input"], found["output"], found["features"]) == (network.input, network.output, 80)
    assert (found["input_scale"], found["gain"]) == (np.float32(0.05), np.float32(0.0125))
    assert found["input_zero_point"] == network.tensors[0].zero_point
    np.testing.assert_array_equal(found["centers"], centering.centers)
    np.testing.assert_array_equal(found["scales"], centering.scales)
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
        if layer.kind in (MAX_POOL, AVERAGE_POOL):
            assert record["encoding"] == layer.clipped
        if layer.kind == TABLE:
            np.testing.assert_array_equal(record["table"], layer.table)
        if layer.kind == CONV:
            assert report.encoding == ("dense", "pairs", "rice")[record["encoding"]]
            assert report.bytes == record["weight_bytes"] + len(encode_scales(record["rows"]))
            np.testing.assert_array_equal(record["weight"], layer.weight)
            zero_point = network.tensors[layer.output].zero_point
            for row, bias, scale, weight in zip(record["rows"], layer.bias, layer.scales, layer.weight, strict=True):
                if weight.any():
                    assert row == (bias, *scale)
                else:
                    assert constant(row, layer, zero_point) == constant((bias, *scale), layer, zero_point)
        else:
            assert tuple(record["scales"]) == layer.scales
    for number, (record, report) in enumerate(zip(found["layers"], reports, strict=True)):
        assert report.scratch == 4 * words.get(number, 0)
        assert record["scratch_at"] == (planned.scratch[number].offset if number in words else 0)

    info = describe(image)
    stored = [r.weights if r.encoding == "dense" else r.nonzeros for r in reports]
    assert (info.stored_weights, info.macs) == (sum(stored), sum(r.macs for r in reports))


def scratch_words(conv: dict) -> int:
    """As docs/image-format.md says."""
    longest = int(conv["stored"].max())
    return 2 * (math.prod(conv["kernel"]) + longest + 3) + longest // 16 if conv["encoding"] else 128


def constant(row: int | tuple[int, int, int], layer: Layer, zero_point: int) -> int:
    """What a row without weights puts out."""
    if isinstance(row, int):
        return row
    bias, *scale = row
    return int(np.clip(requantise(np.array(bias), *scale) + zero_point, layer.low, layer.high))


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


def wide_tensor() -> Network:
    return Network({0: Tensor(70000, 1, 1, 0.1, 0)}, 0, 0)


def long_mean() -> Network:
    layer = Layer(MEAN, "mean7", (0,), 1, -128, 127, scales=((1 << 30, 0),))
    return Network({0: pixel(size=1449), 1: pixel()}, 0, 1, [layer])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (big_kernel, r"conv7: a kernel of 132 taps; the format holds 121 \(11x11\)"),
        (lambda: conv(pixel(), pixel(), bias=np.array([1 << 31])), r"conv7: sums reach 2147483776; int32 holds 214748"),
        (lambda: conv(pixel(), pixel(), bias=np.array([-(1 << 31) + 128])), r"conv7: sums reach 2147483648; "),
        (
            lambda: conv(pixel(), pixel(), stride=(1, 256)),
            r"conv7: kernel, stride, .* of 256; .* holds 255",
        ),
        (lambda: conv(pixel(3, 4000), pixel()), r"conv7: windows of 32000001 bytes; the format holds 16777216"),
        (wide_tensor, r"tensor 0: shape \(70000, 1, 1\) exceeds the format's 65535"),
        (long_mean, r"mean7: a mean of 2099601 values; the format holds 2097151"),
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
    assert describe(write(conv(pixel(2, 4000), pixel()))).macs == 2


@pytest.mark.parametrize("form", range(3))
@pytest.mark.parametrize(
    ("bias", "scale", "output"), [(2**31 - 1, (1 << 30, -20), 127), (-(2**31), (1 << 30, -31), -1)]
)
def test_a_row_without_weights_may_have_any_bias(form, bias, scale, output):
    """The converter gives a dead channel a scale so small that its bias is the end of int32."""
    weight = np.array([[[[1]]], [[[0]]]], np.int8)
    network = conv(pixel(), pixel(2), weight=weight, bias=np.array([0, bias]), scales=((1 << 30, 1), scale))
    device = opened(network, forms=lambda weight: [forms(weight)[form]])
    assert device.encode(np.full((1, 1, 1), 5, np.int8)).tolist() == [5, output]


def test_centering_makes_features_deviate_alike_with_a_mean_squared_norm_of_one():
    deviations = np.array([2, 3, 5, 10, 20, 40, 60])
    features = np.random.default_rng(0).normal(9, deviations, (500, 7)).round().clip(-128, 127).astype(np.int8)
    centering = Centering.of(features)
    x = centering.standardised(features).astype(float)
    assert np.abs(x.mean(axis=0)).max() <= 1 + 0.5 * centering.scales.max() / Centering.UNIT
    np.testing.assert_allclose(np.sqrt((x**2).mean(axis=0)), Centering.DEVIATION, rtol=0.1)
    assert ((x * centering.gain) ** 2).sum(axis=1).mean() == pytest.approx(1)
    constant = Centering.of(np.full((3, 4), 9, np.int8))
    assert constant.gain == 1.0 and (constant.centers == 9).all() and (constant.scales == Centering.UNIT).all()
    quiet = Centering.of(np.repeat(np.array([[0], [1]], np.int8), 2, axis=1))
    assert (quiet.scales == 255).all()


def worked_example() -> Network:
    """What docs/image-format.md takes apart."""
    weight = np.zeros((3, 2, 3, 3), np.int8)
    weight[0, 0, 0, 1], weight[0, 1, 1, 1], weight[2, 0, 2, 2] = 5, -7, 15
    scales = tuple(quantise_multiplier(x) for x in (0.25, 0.5, 0.01))
    layer = Layer(CONV, "conv", (0,), 1, -128, 127, (3, 3), (1, 1), (1, 1), scales, weight, np.array([10, 30, -20]))
    return Network({0: Tensor(2, 2, 2, 0.5, -1), 1: Tensor(3, 2, 2, 0.25, 3)}, 0, 1, [layer])


def test_the_documents_example_is_what_the_code_writes():
    numbers = np.arange(12)
    centering = Centering((numbers - 4).astype(np.int8), 0.125, (numbers + 10).astype(np.uint8))
    image, _ = write_image(worked_example(), centering)
    dump = DOCUMENT.split("```hexdump\n")[1].split("```")[0]
    assert bytes.fromhex("".join(line.split("  ")[1] for line in dump.splitlines())) == image
    assert [int(line[:4], 16) for line in dump.splitlines()] == list(range(0, len(image), 16))
    _, pairs, rice = (form.encode() for form in forms(worked_example().layers[0].weight))
    assert pairs == bytes.fromhex(re.search(r"as pairs take 10 bytes, (.*)\.$", DOCUMENT, re.M)[1].replace("`", ""))
    bits = re.search(r"^    (1 010 00101 .*)$", DOCUMENT, re.MULTILINE)[1].replace(" ", "").replace("|", "")
    assert (*rice[:2], f"{int.from_bytes(rice[2:]):048b}") == (3, 5, bits)


# The convolutions of a ResNet18 for 3x32x32 pruned to 0.75 % of its weights: shape, non-zeros, size of the output map.
RUNG = [
    ((64, 3, 7, 7), 2406, 16), ((64, 64, 3, 3), 4639, 8), ((64, 64, 3, 3), 5021, 8), ((64, 64, 3, 3), 4751, 8),
    ((64, 64, 3, 3), 4647, 8), ((128, 64, 3, 3), 5138, 4), ((128, 128, 3, 3), 7958, 4), ((128, 64, 1, 1), 3090, 4),
    ((128, 128, 3, 3), 7112, 4), ((128, 128, 3, 3), 6191, 4), ((256, 128, 3, 3), 5720, 2), ((256, 256, 3, 3), 4480, 2),
    ((256, 128, 1, 1), 6893, 2), ((256, 256, 3, 3), 2154, 2), ((256, 256, 3, 3), 1573, 2), ((512, 256, 3, 3), 1489, 1),
    ((512, 512, 3, 3), 1042, 1), ((512, 256, 1, 1), 9054, 1), ((512, 512, 3, 3), 338, 1), ((512, 512, 3, 3), 245, 1),
]  # fmt: skip


def synthetic_rung() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights of the rung's shapes and densities, without those near 0, and biases."""
    rng = np.random.default_rng(0)
    for shape, nonzeros, _ in RUNG:
        weight = np.zeros(shape, np.float32)
        kept = rng.choice(weight.size, nonzeros, replace=False)
        weight.flat[kept] = rng.choice([-1, 1], nonzeros) * (0.05 + rng.exponential(0.1, nonzeros))
        yield weight, rng.normal(0, 0.5, shape[0])


def real_rung() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of such a network that was trained, batch norm folded."""
    models = Path(os.environ["ENTROPI_DATA"]).parent / "models"
    with np.load(models / "resnet18_trial_rung_alpha0.0075.npz") as rung:
        names = [name[:-13] for name in rung.files if name.endswith(".weight.shape")]
        assert [tuple(rung[f"{name}.weight.shape"]) for name in names] == [shape for shape, *_ in RUNG]
        for name in names:
            weight = np.zeros(rung[f"{name}.weight.shape"], np.float32)
            weight.flat[rung[f"{name}.weight.index"]] = rung[f"{name}.weight.value"]
            norm = name.replace("conv", "bn") if "conv" in name else name[:-1] + "1"
            gamma, beta, mean, variance = (
                rung[f"{norm}.{field}"] for field in ("weight", "bias", "running_mean", "running_var")
            )
            factor = gamma / np.sqrt(variance + 1e-5)
            yield weight * factor[:, None, None, None], beta - mean * factor


def quantised(layers: Iterable[tuple[np.ndarray, np.ndarray]]) -> Network:
    """A network of int8 convolutions, each after the last one whose output it can read."""
    scale = 0.03
    network = Network({0: Tensor(3, 32, 32, scale, 0)}, 0, len(RUNG))
    for number, ((weight, bias), (shape, _, size)) in enumerate(zip(layers, RUNG, strict=True), 1):
        inputs = next(i for i in range(number - 1, -1, -1) if network.tensors[i].channels == shape[1])
        scales = np.abs(weight).max(axis=(1, 2, 3)) / 127
        scales[scales == 0] = 1e-3
        layer = Layer(
            CONV, f"conv{number}", (inputs,), number, -128, 127, shape[2:],
            stride=(network.tensors[inputs].height // size,) * 2, pad=(shape[2] // 2,) * 2,
            scales=tuple(quantise_multiplier(float(s)) for s in scales),
            weight=np.round(weight / scales[:, None, None, None]).astype(np.int8),
            bias=np.round(bias / scales / scale).astype(np.int64),
        )  # fmt: skip
        network.tensors[number] = Tensor(shape[0], size, size, scale, 0)
        network.layers.append(layer)
    return network


@pytest.mark.parametrize("rung", [synthetic_rung, real_rung])
def test_a_pruned_resnet18_is_near_the_shannon_bound(rung):
    if rung is real_rung and "ENTROPI_DATA" not in os.environ:
        pytest.skip("ENTROPI_DATA does not name the folder of data sets, beside which the trained rung lies")
    network = quantised(rung())
    image, reports = write_image(network, Centering(np.zeros(512, np.int8), 1.0))
    assert describe(image).stored_weights == sum(nonzeros for _, nonzeros, _ in RUNG)
    bound = sum(r.bound for r in reports)
    assert bound == sum(shannon_bound(layer.weight) for layer in network.layers)
    weights = sum(layer["weight_bytes"] for layer in decode(image)["layers"])
    assert 0.95 * bound < weights <= 1.10 * bound, weights / bound
    assert len(image) <= 1.35 * bound, len(image) / bound


def test_the_shannon_bound():
    assert shannon_bound(np.zeros((4, 5), np.int8)) == shannon_bound(np.full(100, -3, np.int8)) == 0
    half = np.tile(np.array([0, 7], np.int8), 400)
    assert shannon_bound(half) == pytest.approx(100)
    half[1::4] = -7
    assert shannon_bound(half.reshape(8, 100)) == pytest.approx(150)
    assert shannon_bound(np.arange(-128, 0).astype(np.int8)) == pytest.approx(128 * 7 / 8)


@pytest.mark.parametrize("density", [0.005, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 4])
def test_the_form_is_the_cheapest(density, size):
    rng = np.random.default_rng(3)
    weight = rng.choice([-90, 90], (16, 64, 1, 1)).astype(np.int8) * (rng.random((16, 64, 1, 1)) < density)
    network = conv(pixel(64, size), pixel(16, size), weight=weight)
    for optimize in ("size", "speed"):
        image, (report,) = write_image(network, Centering(np.zeros(16 * size**2, np.int8), 1.0), optimize)
        sizes = [
            len(f.encode()) + len(encode_scales(row_scales(network.layers[0], 0, f.entries))) for f in forms(weight)
        ]
        told = {name: int(cost.replace(",", "")) for name, cost in re.findall(r"(\w+) ([\d,]*\d)", report.reason)}
        of = dict(zip(("dense", "pairs", "rice"), sizes, strict=True))
        assert told.keys() == of.keys() and told[report.encoding] == min(told.values())
        assert optimize == "speed" or told == of
        assert report.bytes == of[report.encoding]


def test_tensor_numbers_need_not_be_dense():
    """A TFLite model numbers its weights among its activations; the image counts activations alone."""
    network = residual_network(seed=3)
    moved = Network({10 * i: t for i, t in network.tensors.items()}, 0, 130)
    moved.layers = [
        replace(layer, inputs=tuple(10 * i for i in layer.inputs), output=10 * layer.output) for layer in network.layers
    ]
    assert write(moved) == write(network)
