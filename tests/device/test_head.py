"""The head: learning, its arena, and keeping it."""

from __future__ import annotations

import ctypes as c
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from heads import any_centering, head_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from entropi.device import DeviceError, HeadConfig, HostDevice, measure
from entropi.device.library import library
from entropi.device.toolchain import INCLUDE, NUMERICS, RUNTIME_SOURCES, WARNINGS, cache_dir

FEATURES = 24
HEAD = HeadConfig(classes=5, batch=4, bytes_per_parameter=8, learning_rate=0.3, momentum=0.9, weight_decay=0.01)


def samples(count: int, seed: int = 0) -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(seed)
    means = rng.integers(-60, 60, (HEAD.classes, FEATURES))
    labels = rng.integers(0, HEAD.classes, count)
    noise = rng.integers(-60, 60, (count, FEATURES))
    return [((means[y] + n).astype(np.int8), int(y)) for y, n in zip(labels, noise, strict=True)]


def trained(head: HeadConfig, data) -> HostDevice:
    device = HostDevice(head_bundle(FEATURES), "64KiB", head=head)
    for x, y in data:
        device.learn_features(x, y)
    return device


def sgd_in_float64(head: HeadConfig, data) -> np.ndarray:
    """Softmax regression by SGD with momentum as PyTorch defines it (weight decay on weights alone), flushed."""
    centering = any_centering(FEATURES)
    w = np.zeros((head.classes, FEATURES + 1))
    v = np.zeros_like(w)
    decay = np.r_[np.ones(FEATURES), 0] * head.weight_decay
    for step, start in enumerate(range(0, len(data), head.batch)):
        batch = data[start : start + head.batch]
        gradient = np.zeros_like(w)
        for x, y in batch:
            z = np.r_[centering.standardised(x) * centering.gain, 1.0]
            p = np.exp(w @ z - (w @ z).max())
            gradient += np.outer(p / p.sum() - np.eye(head.classes)[y], z) / len(batch)
        v = head.momentum * v + gradient + decay * w
        left = max(head.steps - step, 1) / head.steps if head.steps else 1
        w -= head.learning_rate / (1 + head.learning_rate_decay * step) * left * v
    return np.r_[w[:, :-1].ravel(), w[:, -1]]


@pytest.mark.parametrize(("bytes_per_parameter", "tolerance"), [(12, 2e-6), (8, 2e-6), (4, 2e-6), (2, 5e-3)])
@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize(("decay", "steps"), [(0.0, 0), (0.02, 0), (0.02, 50)])
def test_learning_is_sgd(bytes_per_parameter, tolerance, batch, decay, steps):
    momentum = 0.9 if bytes_per_parameter > 4 else 0.0
    head = replace(
        HEAD,
        bytes_per_parameter=bytes_per_parameter,
        momentum=momentum,
        batch=batch,
        weight_decay=decay,
        learning_rate_decay=decay,
        steps=steps,
    )
    data = samples(401)
    device = trained(head, data)
    device.flush()
    expected = sgd_in_float64(head, data)
    np.testing.assert_allclose(device.head(), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_a_gradient_buffer_changes_no_bit():
    data = samples(203)
    head = replace(HEAD, replay=5, new_classes=1, batch=7, learning_rate_decay=0.01)
    by_gradient, by_batch = (trained(replace(head, bytes_per_parameter=n), data) for n in (12, 8))
    for device in (by_gradient, by_batch):
        device.flush()
    np.testing.assert_array_equal(by_gradient.head().view(np.uint32), by_batch.head().view(np.uint32))


@pytest.mark.parametrize(("bytes_per_parameter", "momentum"), [(8, 0.9), (4, 0.0), (2, 0.0)])
def test_it_learns(bytes_per_parameter, momentum):
    head = replace(HEAD, weight_decay=0.0, bytes_per_parameter=bytes_per_parameter, momentum=momentum)
    device = trained(head, samples(2000))
    held_out = samples(2300)[2000:]
    assert np.mean([device.predict_features(x)[0] == y for x, y in held_out]) > 0.95


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 40),
    batch=st.integers(1, 40),
    mode=st.sampled_from([2, 4, 8, 12]),
    features=st.integers(1, 99),
    replay=st.integers(0, 30),
)
def test_one_byte_too_few_is_refused_with_the_number(classes, batch, mode, features, replay):
    head = HeadConfig(classes, batch, mode, replay=replay)
    image = head_bundle(features).image
    need = measure(image, head)
    assert need.total == sum(
        (need.weights, need.momentum, need.gradient, need.batch, need.replay, max(need.encoder, need.learning))
    )
    HostDevice(head_bundle(features), need.total, head=head).close()
    with pytest.raises(DeviceError) as refused:
        HostDevice(head_bundle(features), need.total - 1, head=head)
    assert (refused.value.status, refused.value.need.missing) == ("E_ARENA", 1)
    assert f"needed {need.total} bytes, given {need.total - 1}, missing 1" in str(refused.value)


@pytest.mark.parametrize("bytes_per_parameter", [12, 8, 4, 2])
def test_the_runtime_stays_inside_its_arena(bytes_per_parameter):
    """Guard bytes behind an arena of exactly the measured size survive opening, learning and predicting."""
    momentum = 0.9 if bytes_per_parameter > 4 else 0.0
    head = replace(HEAD, bytes_per_parameter=bytes_per_parameter, momentum=momentum, replay=7)
    device = HostDevice(head_bundle(FEATURES), "64KiB", head=head)
    total = device.need.total
    memory = np.frombuffer(device._arena, np.uint8)
    memory[total:] = 0xA5
    for x, y in samples(50):
        device.encode(x.reshape(FEATURES, 1, 1))
        device.learn_features(x, y)
        device.predict_features(x)
    device.flush()
    assert (memory[total:] == 0xA5).all()


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1}, {"classes": 70000}, {"batch": 0}, {"bytes_per_parameter": 6}, {"learning_rate": 0.0},
        {"learning_rate": float("nan")}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"bytes_per_parameter": 4},
        {"weight_decay": 2.0}, {"learning_rate_decay": -1.0}, {"new_classes": 5}, {"replay": 70000}, {"seed": -1},
        {"learning_rate": 1e-10}, {"steps": 1 << 32},
    ],
)  # fmt: skip
def test_a_head_out_of_range_is_refused(change):
    with pytest.raises(DeviceError, match="E_ARGUMENT"):
        HostDevice(head_bundle(FEATURES), "64KiB", head=replace(HEAD, **change))


def test_a_label_out_of_range_is_refused():
    device = HostDevice(head_bundle(FEATURES), "64KiB", head=HEAD)
    with pytest.raises(DeviceError, match="label 5 is not below 5 classes"):
        device.learn_features(samples(1)[0][0], 5)


@pytest.mark.parametrize("bytes_per_parameter", [12, 8, 4, 2])
def test_a_head_that_would_leave_its_range_is_left_alone(bytes_per_parameter):
    """Weights at the limit of their exponent: what is refused changes no bit, and the next sample is taken or refused
    for itself."""
    momentum = 0.9 if bytes_per_parameter > 4 else 0.0
    head = HeadConfig(5, 1, bytes_per_parameter, 9e8, momentum)
    device = HostDevice(head_bundle(FEATURES), "64KiB", head=head)
    refused = 0
    for x, y in samples(500):
        before = device.head()
        try:
            device.learn_features(x, y)
        except DeviceError as error:
            assert error.status == "E_NUMERIC"
            refused += 1
            np.testing.assert_array_equal(device.head(), before)
        assert np.abs(device.head()[: -head.classes]).max() <= 2.0**31
    assert refused


COMPILERS = {
    "zig": [sys.executable, "-m", "ziglang", "cc", "-O2"],
    "zig, products in halves": [sys.executable, "-m", "ziglang", "cc", "-Os", "-DENTROPI_SHORT_MULTIPLY=1"],
    "gcc": ["gcc", "-O2"],
    "gcc, unoptimised": ["gcc", "-O0"],
    "gcc, sanitised": ["gcc", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "gcc, products in halves": ["gcc", "-O3", "-DENTROPI_SHORT_MULTIPLY=1", "-fsanitize=undefined"],
    "clang": ["clang", "-O3"],
}
MODES = [(12, 0.9, 4), (8, 0.9, 4), (8, 0.5, 1), (4, 0.0, 1), (4, 0.0, 8), (2, 0.0, 1), (2, 0.0, 4)]


def learn_with(compiler: str, folder: Path) -> list[str]:
    """What learn.c prints of every mode after 600 samples."""
    program, image = folder / "learn", folder / "image"
    image.write_bytes(head_bundle(150).image)
    flags = [*WARNINGS, *NUMERICS, f"-I{INCLUDE}"]
    source = Path(__file__).with_name("learn.c")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache_dir() / "zig")}
    command = [*COMPILERS[compiler], *flags, source, *RUNTIME_SOURCES, "-o", program]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    arguments = [[str(n) for n in mode] for mode in MODES]
    return [subprocess.check_output([program, image, *mode, "600"], text=True).strip() for mode in arguments]


@pytest.fixture(scope="module")
def bits_of_zig(tmp_path_factory) -> list[str]:
    return learn_with("zig", tmp_path_factory.mktemp("zig"))


@pytest.mark.parametrize("compiler", [name for name in COMPILERS if name != "zig"])
def test_every_compiler_learns_the_same_bits(compiler, bits_of_zig, tmp_path):
    if compiler.split(",")[0] != "zig" and not shutil.which(compiler.split(",")[0]):
        pytest.skip(f"{compiler} is not installed")
    assert learn_with(compiler, tmp_path) == bits_of_zig
    assert bits_of_zig[0] == bits_of_zig[1], "12 and 8 bytes a parameter give the same weights"
    assert len(set(bits_of_zig)) == len(MODES) - 1, "heads that are all alike prove nothing"


def test_a_class_takes_part_from_its_first_sample_on():
    head = replace(HEAD, new_classes=2, batch=1)
    device = HostDevice(head_bundle(FEATURES), "64KiB", head=head)
    (x, _), *_ = samples(1)
    assert device.predict_features(x) == (0, pytest.approx(1 / 3))
    assert device.learn_features(x, 0) == pytest.approx(np.log(3))
    before = device.predict_features(x)[1]
    weights = device.head()[: -head.classes].reshape(head.classes, FEATURES)
    assert weights[:3].any() and not weights[3:].any()
    device.learn_features(x, 4)
    assert device.predict_features(x)[1] < before
    assert not device.head()[: -head.classes].reshape(head.classes, FEATURES)[3].any()


def test_a_new_class_is_told_from_old_ones_by_replay():
    """Its own samples push no old class down once samples are kept: the first one has nothing to be told from."""
    data = samples(300, seed=3)
    old = [(x, y) for x, y in data if y < 3]
    new = [next(x for x, y in data if y == label) for label in (3, 4)]
    losses = {}
    for replay in (0, 20):
        device = trained(replace(HEAD, new_classes=2, replay=replay, batch=1), old)
        weights = device.head()[: -HEAD.classes].reshape(HEAD.classes, FEATURES)
        assert weights[:3].any(axis=1).all() and not weights[3:].any()
        losses[replay] = device.learn_features(new[0], 3), device.learn_features(new[1], 4)
    assert losses[20][0] == 0 and 0 < losses[20][1] < losses[0][1] and losses[0][0] > 1


def test_replay_keeps_what_was_learned_before_a_new_class():
    data = samples(1200, seed=3)
    old = [(x, y) for x, y in data[:800] if y < 4]
    new = [(x, y) for x, y in data if y == 4]
    held_out = data[800:]
    accuracy = {}
    for replay in (0, 20):
        head = replace(HEAD, classes=5, new_classes=1, replay=replay, weight_decay=0.0)
        device = trained(head, old + new)
        hits = {k: [device.predict_features(x)[0] == y for x, y in held_out if (y == 4) == k] for k in (False, True)}
        accuracy[replay] = np.mean(hits[False]), np.mean(hits[True])
    assert accuracy[20][0] > 0.95 and accuracy[20][1] > 0.95
    assert accuracy[0][0] < accuracy[20][0] - 0.2


def held_labels(device: HostDevice) -> np.ndarray:
    need, head = device.need, device.head_config
    start = need.weights + need.momentum + need.gradient + need.batch + 8 + 6 * head.classes
    return np.frombuffer(device._arena, np.uint16, head.replay, start).copy()


def test_the_reservoir_keeps_classes_even_and_old_samples_as_well_as_new():
    head = replace(HEAD, replay=40)
    device = HostDevice(head_bundle(FEATURES), "64KiB", head=head)
    rng = np.random.default_rng(2)
    shares = [0.7, 0.2, 0.09, 0.01, 0.0]
    for number, y in enumerate(rng.choice(5, 3000, p=shares)):
        x = np.zeros(FEATURES, np.int8)
        x[0] = number // 100
        device.learn_features(x, int(y))
    counts = np.bincount(held_labels(device), minlength=5)
    assert counts[4] == 0 and counts[:4].min() >= 9 and counts.sum() == 40
    need = device.need
    start = need.weights + need.momentum + need.gradient + need.batch + 8 + 6 * head.classes + 2 * head.replay
    ages = np.frombuffer(device._arena, np.int8, head.replay * FEATURES, start).reshape(-1, FEATURES)[:, 0]
    assert ages[held_labels(device) == 0].min() < 15 < ages[held_labels(device) == 0].max()


def test_the_seed_decides():
    def learned(bytes_per_parameter: int, seed: int) -> bytes:
        momentum = 0.9 if bytes_per_parameter > 4 else 0.0
        head = replace(HEAD, bytes_per_parameter=bytes_per_parameter, momentum=momentum, replay=6, seed=seed)
        return trained(head, samples(100)).head().tobytes()

    for bytes_per_parameter in (8, 2):
        assert learned(bytes_per_parameter, 1) == learned(bytes_per_parameter, 1) != learned(bytes_per_parameter, 2)


def test_exp_and_log_are_close():
    exp, log = library().entropi_exp_negative, library().entropi_log_above_one
    for function in (exp, log):
        function.argtypes, function.restype = [c.c_float], c.c_float
    for x in np.linspace(-87, 0, 4001, dtype=np.float32):
        assert exp(x) == pytest.approx(np.exp(np.float64(x)), rel=4e-7)
    assert exp(-100.0) == 0.0
    for x in np.geomspace(1, 1e30, 4001, dtype=np.float32):
        assert log(x) == pytest.approx(np.log(np.float64(x)), rel=4e-7, abs=2e-7)
