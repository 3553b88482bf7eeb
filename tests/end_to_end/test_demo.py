"""The whole path: what the demo leaves behind, and that host, board and tflite-micro agree on it."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from small_demo import tasks

from entropi.device import Bundle, DeviceError, HeadConfig, HostDevice, measure
from entropi.export.tflm import run_reference
from entropi.firmware_sim import BoardError, Simulator
from entropi.host import demo
from entropi.host.selection import Selection

HEAD = HeadConfig(classes=10, batch=4, bytes_per_parameter=4, learning_rate=3.0)


@pytest.fixture(scope="module")
def bundle(small_demo) -> Bundle:
    return Bundle.open(small_demo.folder / "build" / "chosen")


def test_every_artefact_is_there(small_demo):
    files = {str(p.relative_to(small_demo.folder)) for p in small_demo.folder.rglob("*") if p.is_file()}
    bundles = {
        f"build/{name}/{file}"
        for name in ("chosen", "dense")
        for file in ("encoder.onnx", "encoder_int8.tflite", "encoder.entropi", "src/entropi_image.c", "golden.npz")
    }
    assert bundles | {"demo.json", "entropy.png", "ladder/ladder.json", "ladder/selection.json"} <= files
    assert Selection.load(small_demo.folder / "ladder").rung == small_demo.content["chosen_rung"]
    assert len(small_demo.bars) == 6


def test_the_table_says_what_does_not_fit(small_demo):
    dense, chosen, pixels = small_demo.content["rows"]
    assert dense["flash"] - 512 * 1024 == pytest.approx(dense["flash_missing"], abs=4096)
    assert chosen["flash_missing"] == pixels["flash_missing"] == 0
    assert dense["instructions_image"] > 3 * chosen["instructions_image"]
    text = StringIO()
    Console(width=80, file=text).print(demo.render(small_demo.content))
    assert f"{dense['flash_missing']:,}" in text.getvalue() and "…" not in text.getvalue()


def test_board_host_and_tflite_micro_give_the_same_features(bundle):
    images = tasks().target.train.images[:100]
    values = bundle.preprocessing(images)
    reference = run_reference((bundle.folder / "encoder_int8.tflite").read_bytes(), values)
    host = HostDevice(bundle, "64KiB", head=HEAD)
    with Simulator(bundle, budget="64KiB", head=HEAD) as board:
        for value, expected in zip(values, reference, strict=True):
            np.testing.assert_array_equal(board.encode(value), expected)
            np.testing.assert_array_equal(host.encode(value), expected)


@pytest.mark.parametrize("bytes_per_parameter", [4, 8, 12])
def test_the_same_lessons_leave_the_same_bits(bundle, bytes_per_parameter):
    momentum = 0.9 if bytes_per_parameter > 4 else 0.0
    head = replace(HEAD, bytes_per_parameter=bytes_per_parameter, momentum=momentum, weight_decay=1e-3)
    samples = list(tasks().target.train)[:30]
    host = HostDevice(bundle, "96KiB", head=head)
    with Simulator(bundle, budget="96KiB", head=head) as board:
        losses = [(host.learn(image, label), board.learn(image, label)) for image, label in samples]
        host.flush()
        board.flush()
        assert all(a == b for a, b in losses)
        np.testing.assert_array_equal(host.head().view(np.uint32), board.head().view(np.uint32))
        assert host.accuracy(samples) == board.accuracy(samples)


def test_one_byte_too_few_is_refused_on_host_and_board(bundle):
    total = measure(bundle.image, HEAD).total
    for device in (HostDevice, Simulator):
        device(bundle, budget=total, head=HEAD).close()
        with pytest.raises(DeviceError) as refused:
            device(bundle, budget=total - 1, head=HEAD)
        assert (refused.value.status, refused.value.need.missing) == ("E_ARENA", 1)
        assert f"needed {total} bytes, given {total - 1}, missing 1" in str(refused.value)


def test_the_board_refuses_a_damaged_image(bundle):
    damaged = bytearray(bundle.image)
    damaged[len(damaged) // 2] ^= 1
    with pytest.raises(DeviceError, match="E_IMAGE"):
        Simulator(replace(bundle, image=bytes(damaged)), budget="64KiB", head=HEAD)


def test_too_much_ram_or_flash_is_refused_with_three_numbers(small_demo, bundle):
    with pytest.raises(BoardError, match=r"RAM.*needed.*given.*missing"):
        Simulator(bundle, budget="130KiB", head=HEAD)
    with pytest.raises(BoardError, match=r"FLASH.*needed.*given.*missing"):
        Simulator(small_demo.folder / "build" / "dense", head=HEAD)
