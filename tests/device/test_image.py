"""What the C runtime accepts as an image, and that it computes what the definition says."""

from __future__ import annotations

import ctypes as c
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import conv_layer, reference, requantise, residual_network, write

from entropi.device import SMALLEST_HEAD, Bundle, DeviceError, HostDevice, describe, toolchain
from entropi.device import library as runtime_library
from entropi.device.bundle import Preprocessing
from entropi.device.library import CInfo, kernels_source
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV, Layer, Network, Tensor, quantise_multiplier
from entropi.export.plan import NO_BORDER, Place, Plan
from entropi.export.rows import DENSE, PAIRS, RICE, forms

LENGTH_AT, TENSORS_AT, LAYERS_AT, WEIGHTS_AT = 8, 44, 48, 64  # WEIGHTS_AT is that of the first layer
FORMS = {"dense": DENSE, "pairs": PAIRS, "rice": RICE}
PARAMETERS, WEIGHTS, SCRATCH = 20, 24, 32  # in a layer record; behind the weights' offset stands their length


@pytest.fixture(scope="module", params=[(), ("-DENTROPI_NO_VECTORS",)], ids=["vectors", "plain"], autouse=True)
def flags(request) -> Iterator[tuple[str, ...]]:
    """Everything here holds for the host's kernels and for those of cores without vectors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_library, "build_shared", partial(toolchain.build_shared, flags=request.param))
        runtime_library.library.cache_clear()
        yield request.param
    runtime_library.library.cache_clear()


@pytest.fixture
def network() -> Network:
    return residual_network(seed=1)


def open_image(image: bytes) -> HostDevice:
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,) * 3, (1.0,) * 3, 1 / 255, -128))
    return HostDevice(bundle, "1MiB", head=SMALLEST_HEAD)


def write_optimized(network: Network, optimize: str) -> tuple[bytes, set[str]]:
    """The image, and the forms of weights in it."""
    out = network.tensors[network.output]
    centering = Centering(np.zeros(out.channels * out.height * out.width, np.int8), 0.01)
    image, reports = write_image(network, centering, optimize)
    return image, {report.encoding for report in reports if report.encoding}


def resealed(image: bytes) -> bytes:
    return image[:-4] + zlib.crc32(image[:-4]).to_bytes(4, "little")


@pytest.mark.parametrize("seed", range(4))
def test_every_layer_is_what_the_definition_says(seed):
    network = residual_network(seed, channels=4 + seed, size=8 + 3 * seed, density=(0.05, 0.3, 0.6, 1.0)[seed])
    device = open_image(write_optimized(network, ("speed", "size")[seed % 2])[0])
    for values in np.random.default_rng(seed).integers(-128, 128, (3, *network.tensors[0].shape)).astype(np.int8):
        found, expected = device.encode_layers(values), reference(network, values)
        for number in network.last_writers().values():
            np.testing.assert_array_equal(found[number], expected[number], err_msg=network.layers[number].name)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_convolutions_of_any_shape(data):
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3)]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    pad = draw(st.tuples(*(st.integers(0, r) for r in reach)))
    size = draw(st.tuples(*(st.integers(max(1, r - 2 * p), 18) for r, p in zip(reach, pad, strict=True))))
    out_size = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(size, pad, reach, stride, strict=True)]
    groups = draw(st.sampled_from([1, 1, 2, 7]))
    source = Tensor(groups * draw(st.integers(1, 40 // groups)), *size, 0.05, draw(st.integers(-128, 127)))
    out = Tensor(groups * draw(st.integers(1, 5)), *out_size, 0.05, draw(st.integers(-128, 127)))
    density = draw(st.sampled_from([0.0, 0.004, 0.05, 0.4, 1.0]))
    layer = conv_layer(rng, source, 1, out, (0,), kernel, stride, pad, density, dilation, groups)
    network = Network({0: source, 1: out}, 0, 1, [layer])
    values = rng.integers(-128, 128, source.shape).astype(np.int8)
    for optimize in ("size", "speed"):
        device = open_image(write_optimized(network, optimize)[0])
        np.testing.assert_array_equal(device.encode_layers(values)[0], reference(network, values)[0])


@pytest.mark.parametrize("form", ["dense", "pairs", "rice"])
@pytest.mark.parametrize(("width", "stride"), [(18, 1), (18, 2), (6, 1), (6, 2), (3, 1), (1, 1), (9, 3)])
def test_a_border_changes_no_byte(form, width, stride):
    """With one, without, and with one that is too narrow, at the extremes of values and zero points."""
    rng = np.random.default_rng(width)
    source = Tensor(4, 5, width, 0.05, -128)
    out = Tensor(6, *((n + 4 - 5) // stride + 1 for n in (5, width)), 0.05, 127)
    density = 1.0 if form == "dense" else 0.2
    layer = conv_layer(rng, source, 1, out, (0,), (5, 5), (stride, stride), (2, 2), density)
    network = Network({0: source, 1: out}, 0, 1, [layer])
    inputs = [np.full(source.shape, 127), rng.integers(-128, 128, source.shape)]
    for values in (x.astype(np.int8) for x in inputs):
        expected = reference(network, values)[0]
        for border in ((2, 2, 2, 2), (0, 0, 0, 0), (1, 0, 0, 2), (0, 1, 2, 0)):
            pitch = border[1] + width + border[3]
            place = Place(border, 2, 4 * pitch * (border[0] + 5 + border[2]))
            places = {0: place, 1: Place(NO_BORDER, place.end + 2, 6 * out.height * out.width)}
            image = lay_out(network, places, FORMS[form], (places[1].end + 3) // 4 * 4)
            np.testing.assert_array_equal(open_image(image).encode_layers(values)[0], expected)


def lay_out(network: Network, places: dict[int, Place], form: int, scratch_at: int, less: int = 0) -> bytes:
    """The image with this plan and form of weights, whatever the exporter would choose; `less` bytes of scratch."""

    def planned(_, __, scratch: Mapping[int, int]) -> Plan:
        found = {number: Place(NO_BORDER, scratch_at, size - less) for number, size in scratch.items()}
        return Plan(places, found, max(place.end for place in (*places.values(), *found.values())))

    return write(network, plan=planned, forms=lambda weight: [forms(weight)[form]])


def convolution() -> Network:
    t = Tensor(2, 4, 9, 0.05, 3)
    layer = conv_layer(np.random.default_rng(0), t, 1, t, (0,), (3, 3), (1, 1), (1, 1), 0.3)
    return Network({0: t, 1: t}, 0, 1, [layer])


FIRST, LAST = (1, 76, 148), (1092, 1021, 0)  # input, output, scratch; 72 bytes each, and less than 1,020 of scratch


@pytest.mark.parametrize(
    ("what", "at", "section", "byte", "change"),
    [
        ("a map that begins too early", FIRST, TENSORS_AT, 0, -1),
        ("a map that ends too late", LAST, TENSORS_AT, 0, 1),
        ("windows that begin further left", FIRST, LAYERS_AT, 13, 1),
        ("windows that end further right", LAST, LAYERS_AT, 15, 1),
        ("no stride", LAST, LAYERS_AT, 11, -1),
        ("no dilation", LAST, LAYERS_AT, 14, -1),
    ],
)
def test_reading_beyond_the_activations_is_refused(what, at, section, byte, change):
    """A 3x3 convolution of a map without a border, which begins or ends where the runtime may just read."""
    places = {number: Place(NO_BORDER, at[number], 72 + (at[number] == 1092)) for number in (0, 1)}
    image = lay_out(convolution(), places, PAIRS, at[2])
    at = u32(image, section) + byte
    open_image(image).encode(np.zeros((2, 4, 9), np.int8))
    with pytest.raises(DeviceError, match="E_IMAGE"):
        describe(patched(image, {at: image[at] + change}))


@pytest.mark.parametrize("form", FORMS)
def test_scratch_lies_apart_from_what_its_layer_reads_and_writes(form):
    """Behind the input and right before the output, then at the end."""
    network = convolution()
    size = write_image(network, Centering(np.zeros(72, np.int8), 1.0), forms=lambda w: [forms(w)[FORMS[form]]])[1][
        0
    ].scratch
    between = {0: Place(NO_BORDER, 1, 75), 1: Place(NO_BORDER, 76 + size, 72)}
    image = lay_out(network, between, FORMS[form], 76)
    open_image(image).encode(np.zeros((2, 4, 9), np.int8))
    at = layer_record(image) + SCRATCH
    for changes in ({at: 72}, {at: 80}, {at: 77}, {at: 78}, {at + 2: 1}, {at + 3: 255}):
        with pytest.raises(DeviceError, match="E_IMAGE"):
            describe(patched(image, changes))
    first = {0: Place(NO_BORDER, 1, 75), 1: Place(NO_BORDER, 76, 72)}
    assert describe(lay_out(network, first, FORMS[form], 148)).layers == 1
    with pytest.raises(DeviceError, match="E_IMAGE"):
        describe(lay_out(network, first, FORMS[form], 148, less=1))


def one_by_one(weight: np.ndarray, scales=None, bias=None) -> Network:
    """A convolution of one pixel; weight [rows, channels]."""
    rows, channels = weight.shape
    layer = Layer(
        CONV, "conv", (0,), 1, -128, 127, weight=weight.astype(np.int8)[:, :, None, None],
        scales=scales or (quantise_multiplier(0.1),) * rows, bias=np.zeros(rows, np.int64) if bias is None else bias,
    )  # fmt: skip
    return Network({0: Tensor(channels, 1, 1, 0.1, 0), 1: Tensor(rows, 1, 1, 0.1, 5)}, 0, 1, [layer])


@pytest.mark.parametrize(
    ("optimize", "density", "form"), [("size", 1.0, "dense"), ("speed", 0.1, "pairs"), ("size", 0.001, "rice")]
)
def test_every_form_of_weights_runs(optimize, density, form):
    """Rows without weights, rows with one at either end, and distances that no single entry holds."""
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 128, (40, 2000)) * (rng.random((40, 2000)) < density)
    weight[[3] if form == "dense" else [*range(3, 9), 12, 21, 38, 39]] = 0
    weight[10, 0] = weight[11, -1] = weight[20, -1] = -128
    bias = rng.integers(-300, 300, 40)
    network = one_by_one(weight, bias=bias, scales=tuple((1 << 30, -8 - row % 4) for row in range(40)))
    image, forms = write_optimized(network, optimize)
    assert forms == {form}
    values = rng.integers(-128, 128, (2000, 1, 1)).astype(np.int8)
    np.testing.assert_array_equal(open_image(image).encode_layers(values)[0], reference(network, values)[0])


@pytest.mark.parametrize("shifts", [(-31, 20), (-31, -31), (-9, -8), (0, 6), (3, 20)])
@pytest.mark.parametrize("bias", [0, 100, 1 << 29])
def test_scales_of_any_width_run(shifts, bias):
    weight = np.array([[3, 0], [0, 0], [0, -2], [1, 1]])
    biases = np.array([bias if shift < 0 else bias % 101 for shift in (*shifts, *shifts)]) * [1, -1, -1, 1]
    network = one_by_one(weight, bias=biases, scales=tuple(((1 << 30) + 5, shift) for shift in (*shifts, *shifts)))
    values = np.array([100, -50], np.int8).reshape(2, 1, 1)
    device = open_image(write_optimized(network, "size")[0])
    np.testing.assert_array_equal(device.encode_layers(values)[0], reference(network, values)[0])


@pytest.mark.parametrize(
    ("optimize", "form", "width", "density"), [("size", "rice", 2, 0.6), ("speed", "pairs", 5, 0.22)]
)
def test_a_row_may_hold_more_than_65535_weights(optimize, form, width, density):
    rng = np.random.default_rng(0)
    shape = (2, 65535, 1, width)
    weight = (rng.choice([-3, -2, -1, 1, 2, 3], shape) * (rng.random(shape) < density)).astype(np.int8)
    layer = replace(
        one_by_one(weight[:, :1, 0, 0]).layers[0], weight=weight, kernel=(1, width), scales=((1 << 30, -8),) * 2
    )
    network = Network({0: Tensor(65535, 1, width, 0.1, 0), 1: Tensor(2, 1, 1, 0.1, 5)}, 0, 1, [layer])
    image, forms = write_optimized(network, optimize)
    assert forms == {form} and describe(image).stored_weights == np.count_nonzero(weight) > 2 * 65535
    values = rng.integers(-128, 128, (65535, 1, width)).astype(np.int8)
    sums = (weight[:, :, 0].astype(int) * values[None, :, 0]).sum(axis=(1, 2))
    expected = (requantise(sums, *layer.scales[0]) + 5).astype(int).clip(-128, 127)
    np.testing.assert_array_equal(open_image(image).encode_layers(values)[0].ravel(), expected)


def u32(image: bytes, at: int) -> int:
    return int.from_bytes(image[at : at + 4], "little")


def patched(image: bytes, changes: dict[int, int]) -> bytes:
    """The image with other bytes and its CRC mended."""
    damaged = bytearray(image)
    for at, value in changes.items():
        damaged[at] = value & 0xFF
    return resealed(bytes(damaged))


def layer_record(image: bytes, number: int = 0) -> int:
    return u32(image, LAYERS_AT) + 36 * number


def at_the_end(image: bytes, section: int, data: bytes, number: int = 0) -> bytes:
    """The image with other parameters or weights of a layer, right before the CRC."""
    longer = bytearray(image[:-4] + data + bytes(4))
    longer[LENGTH_AT : LENGTH_AT + 4] = len(longer).to_bytes(4, "little")
    record = layer_record(image, number) + section
    longer[record : record + 4] = (len(image) - 4).to_bytes(4, "little")
    if section == WEIGHTS:
        longer[record + 4 : record + 8] = len(data).to_bytes(4, "little")
    return resealed(bytes(longer))


def parameters(image: bytes, number: int = 0) -> bytes:
    """A layer's parameters, and what follows them."""
    return image[u32(image, layer_record(image, number) + PARAMETERS) :]


def weights(image: bytes, number: int = 0) -> bytes:
    at, length = (u32(image, layer_record(image, number) + WEIGHTS + i) for i in (0, 4))
    return image[at : at + length]


def hostile() -> dict[str, tuple[str, Callable[[bytes], dict[int, int]]]]:
    """From what is wrong to the form of weights and the changes that make it so."""

    def weights_end(image: bytes) -> int:
        return WEIGHTS_AT + len(weights(image))

    def record(byte: int, change: int) -> Callable[[bytes], dict[int, int]]:
        return lambda image: {layer_record(image) + byte: image[layer_record(image) + byte] + change}

    def parameter(byte: int, value: int) -> Callable[[bytes], dict[int, int]]:
        return lambda image: {u32(image, layer_record(image) + PARAMETERS) + byte: value}

    cases = {
        "an encoding that does not exist": ("pairs", record(1, 2)),
        "a distance of 0": ("pairs", lambda image: {WEIGHTS_AT + 3: 0}),
        "a list that ends before the last row does": (
            "pairs",
            lambda image: {weights_end(image) - 1: image[weights_end(image) - 1] - 1},
        ),
        "a list that ends beyond the last row": ("pairs", lambda image: {weights_end(image) - 1: 200}),
        "a weight at the end of the list": ("pairs", lambda image: {weights_end(image) - 2: 1}),
        "a byte behind the list": ("pairs", record(28, 1)),
        "an entry behind the list": ("pairs", record(28, 2)),
        "a list without its end": ("pairs", record(28, -2)),
        "half an entry": ("pairs", record(28, -1)),
        "no weights": ("pairs", lambda image: {layer_record(image) + 28: 0}),
        "k above 16": ("rice", lambda image: {WEIGHTS_AT: 17}),
        "a k that makes codes too long": ("rice", lambda image: {WEIGHTS_AT: 16}),
        "another k": ("rice", lambda image: {WEIGHTS_AT: image[WEIGHTS_AT] - 1}),
        "zeros alone": ("rice", lambda image: {at: 0 for at in range(WEIGHTS_AT + 2, weights_end(image))}),
        "ones alone": ("rice", lambda image: {at: 255 for at in range(WEIGHTS_AT + 2, weights_end(image))}),
        "a byte behind the codes": ("rice", record(28, 1)),
        "codes cut off": ("rice", record(28, -1)),
        "no codes": ("rice", lambda image: {layer_record(image) + 28: 0}),
        "k alone": ("rice", lambda image: {layer_record(image) + 28: 1}),
        "k and bits alone": ("rice", lambda image: {layer_record(image) + 28: 2}),
        "a value of more bits than there are": ("pairs", lambda image: {WEIGHTS_AT + 1: image[WEIGHTS_AT + 1] - 1}),
        "other bits of a value": ("rice", lambda image: {WEIGHTS_AT + 1: image[WEIGHTS_AT + 1] - 1}),
        "too many dense weights": ("dense", record(28, 1)),
    }
    for form in ("pairs", "rice"):
        cases |= {
            f"values of 1 bit, {form}": (form, lambda image: {WEIGHTS_AT + 1: 1}),
            f"values of 9 bits, {form}": (form, lambda image: {WEIGHTS_AT + 1: 9}),
        }
    for form in ("dense", "pairs", "rice"):
        cases |= {
            f"no bytes of bias, {form}": (form, parameter(1, 0)),
            f"5 bytes of bias, {form}": (form, parameter(1, 5)),
            f"9 bits of shift, {form}": (form, parameter(2, 9)),
            f"a shift above 30, {form}": (form, parameter(0, 31)),
            f"a shift below -31, {form}": (form, parameter(0, -32)),
            f"a negative multiplier, {form}": (form, parameter(7, 0xBF)),
        }
    return cases


def small_image(form: str) -> bytes:
    """One layer of 6 rows, of which the last is without weights in a sparse form."""
    rng = np.random.default_rng(1)
    channels, density = {"dense": (100, 1), "pairs": (100, 0.2), "rice": (1000, 0.004)}[form]
    weight = rng.integers(1, 128, (6, channels)) * (rng.random((6, channels)) < density)
    weight[-1, -3 if form == "dense" else 0 :] = 0
    image, forms = write_optimized(one_by_one(weight), "speed" if form == "pairs" else "size")
    assert forms == {form}
    return image


@pytest.mark.parametrize("what", hostile())
def test_hostile_weights_are_refused(what):
    form, damage = hostile()[what]
    image = small_image(form)
    assert describe(patched(image, {})).layers == 1
    with pytest.raises(DeviceError, match="E_IMAGE"):
        describe(patched(image, damage(image)))


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory, flags) -> Path:
    if not shutil.which("cc"):
        pytest.skip("the address sanitiser needs a system compiler named cc")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    sanitised = [
        "-std=c99",
        "-g",
        "-O1",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-ffp-contract=off",
    ]
    sources = [*toolchain.RUNTIME_SOURCES, Path(__file__).with_name("fuzz.c")]
    command = ["cc", *sanitised, *flags, f"-I{toolchain.INCLUDE}", *sources, "-o", program]
    built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode and "asan" in built.stderr:
        pytest.skip("the system compiler has no address sanitiser")
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("form", ["dense", "pairs", "rice"])
def test_nothing_is_read_behind_a_section(tmp_path, fuzz, form):
    image = small_image(form)
    stored = 6 if form == "dense" else 5
    whole = parameters(image)[: 4 + stored * (4 + parameters(image)[1]) + (6 - stored)]
    assert describe(at_the_end(image, PARAMETERS, whole)).layers == 1
    assert describe(at_the_end(image, WEIGHTS, weights(image))).layers == 1
    for section, data in ((PARAMETERS, whole), (WEIGHTS, weights(image))):
        for length in range(len(data)):
            with pytest.raises(DeviceError, match="E_IMAGE"):
                describe(at_the_end(image, section, data[:length]))
        for length in (len(data) // 4, len(data) - 1):
            (tmp_path / "image").write_bytes(at_the_end(image, section, data[:length]))
            done = subprocess.run([fuzz, tmp_path / "image", "0"], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr[-2000:]


@pytest.mark.parametrize(("k", "value_bits", "fits"), [(13, 8, True), (12, 8, False), (12, 7, False), (12, 6, True)])
def test_a_code_is_no_longer_than_one_load_holds(k, value_bits, fits):
    """25,001 positions to the weight at 25,000 are one code of 25000 / 2^k + 1 + k + value_bits bits."""

    def code(distance: int, value: int) -> str:
        return "0" * (distance - 1 >> k) + f"1{(distance - 1) % (1 << k):0{k}b}{value:0{value_bits}b}"

    weight = np.zeros((1, 30000), np.int8)
    weight[0, 25000] = 7
    image, _ = write_optimized(one_by_one(weight), "size")
    bits = code(25001, 7) + code(5000, 0)
    data = bytes([k, value_bits]) + (int(bits, 2) << -len(bits) % 8).to_bytes(-(-len(bits) // 8), "big")
    if fits:
        assert describe(at_the_end(image, WEIGHTS, data)).stored_weights == 1
    else:
        with pytest.raises(DeviceError, match="E_IMAGE"):
            describe(at_the_end(image, WEIGHTS, data))


@pytest.mark.parametrize("optimize", ["size", "speed"])
@pytest.mark.parametrize("last", ["scales", "parameters", "weights"])
def test_the_runtime_is_clean_under_sanitisers(tmp_path, fuzz, optimize, last):
    """Random damage with a mended CRC, opened and run where every out-of-bounds access ends the program. What stands
    last in the image is what a decoder without checks would read beyond."""
    image, forms = write_optimized(residual_network(seed=3, channels=3, size=6), optimize)
    assert ("rice" if optimize == "size" else "pairs") in forms
    if last == "weights":
        image = at_the_end(image, WEIGHTS, weights(image, 4), 4)
    if last == "parameters":
        _, bias_bytes, shift_bits = parameters(image, 4)[:3]
        length = 4 + 1 + 5 * (4 + bias_bytes + (shift_bits == 8))  # the first of 6 rows has no weights
        image = at_the_end(image, PARAMETERS, parameters(image, 4)[:length], 4)
    describe(image)
    (tmp_path / "image").write_bytes(image)
    done = subprocess.run([fuzz, tmp_path / "image", "10000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ran = int(done.stdout.split()[0])
    assert 100 < ran < 10000, f"{ran} of 10000 damaged images were accepted; the test wants some of both"


def test_any_flipped_byte_is_refused(network):
    image = write(network)
    assert describe(image).layers == len(network.layers)
    for at in range(len(image)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(image)
            damaged[at] ^= flip
            with pytest.raises(DeviceError) as refused:
                describe(bytes(damaged))
            assert refused.value.status in ("E_IMAGE", "E_VERSION")


def test_truncated_and_extended_images_are_refused(network):
    image = write(network)
    for wrong in (b"", image[:3], image[:60], image[:-1], image + b"\0"):
        with pytest.raises(DeviceError, match="E_IMAGE"):
            describe(wrong)


@settings(max_examples=400, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    optimize=st.sampled_from(["size", "speed"]),
)
def test_a_hostile_image_is_refused_or_harmless(changes, optimize):
    """A valid CRC over nonsense: whatever describe lets through must run inside the arena."""
    image, _ = write_optimized(residual_network(seed=2, channels=3, size=6), optimize)
    try:
        device = open_image(patched(image, {at % (len(image) - 4): value for at, value in changes}))
    except DeviceError:
        return
    info = device.info
    device.encode(np.zeros((info.channels, info.height, info.width), np.int8))


def test_a_wrong_input_length_is_refused(network):
    with pytest.raises(DeviceError, match="E_ARGUMENT"):
        open_image(write(network)).encode(np.zeros((3, 5, 5), np.int8))


def test_an_image_whose_kernels_the_build_lacks_is_refused(network, tmp_path):
    before, after = Tensor(2, 4, 4, 0.1, 0), Tensor(3, 4, 4, 0.1, 0)
    convolution = conv_layer(np.random.default_rng(0), before, 1, after, (0,), (3, 3), (1, 1), (1, 1), density=0.3)
    convolutions = Network({0: before, 1: after}, 0, 1)
    convolutions.layers.append(convolution)
    own = tmp_path / toolchain.KERNELS_SOURCE.name
    own.write_text(kernels_source(write(convolutions)))
    sources = (*sorted(set(toolchain.RUNTIME_SOURCES) - {toolchain.KERNELS_SOURCE}), own)
    library = c.CDLL(str(toolchain.build_shared("own", sources, (f"-I{toolchain.KERNELS_SOURCE.parent}",))))
    library.entropi_status_name.restype = c.c_char_p

    def status(image: bytes) -> bytes:
        found = library.entropi_describe(image, c.c_size_t(len(image)), c.byref(CInfo()))
        return library.entropi_status_name(found)

    assert status(write(convolutions)) == b"OK"
    assert status(write(network)) == b"E_KERNEL"
