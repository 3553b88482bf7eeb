"""Bundles: a real network through PyTorch, ONNX Runtime, TensorFlow, LiteRT, tflite-micro and the device's C."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert.interpreter import Interpreter

from entropi.device import Bundle, HostDevice, describe, toolchain
from entropi.export import CheckError, OnnxError, encoder, export_encoder, export_pixels
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV
from entropi.export.onnx import check_onnx, run_onnx
from entropi.export.reader import from_tflite
from entropi.export.removal import remove
from entropi.export.tflm import run_reference
from entropi.host.data import Split


@pytest.fixture(scope="module")
def device(bundle) -> HostDevice:
    return HostDevice(bundle, "256KiB")


@pytest.fixture(scope="module")
def further(source, images) -> np.ndarray:
    """200 images the export has not seen, and the extremes: black, white, checkerboards of pixels and of channels."""
    random = images.random(200, source.input_shape, seed=77).images
    board = np.indices(source.input_shape).sum(axis=0) % 2
    channels = np.broadcast_to(np.array([0, 1, 0])[:, None, None], source.input_shape)
    extremes = np.stack([0 * board, 0 * board + 1, board, 1 - board, channels]) * 255
    return np.concatenate([random, extremes.astype(np.uint8)])


@pytest.fixture(scope="module")
def model(bundle) -> bytes:
    return (bundle.folder / "encoder_int8.tflite").read_bytes()


def test_the_stages_are_told(bundle, stages):
    assert stages == [
        "folding batch norm", "ONNX", "int8 TFLite", "device image", "checking against tflite-micro",
        "measuring what int8 costs",
    ]  # fmt: skip


def test_the_folder_holds_what_it_should_and_nothing_half_written(bundle):
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "CMakeLists.txt", "README.md", "encoder.entropi", "encoder.onnx", "encoder_int8.onnx", "encoder_int8.tflite",
        "golden.npz", "library.json", "library.properties", "report.json", "src", "zephyr",
    ]  # fmt: skip
    assert Bundle.open(bundle.folder) == bundle


def test_onnx_runtime_gives_torchs_features(bundle, source, further):
    inputs = encoder.normalise(further, source.mean, source.std)
    with torch.no_grad():
        features = source.encoder().eval()(torch.from_numpy(inputs)).numpy()
    path = bundle.folder / "encoder.onnx"
    np.testing.assert_allclose(run_onnx(path, inputs), features, rtol=0, atol=1e-4 * np.abs(features).max())
    with pytest.raises(OnnxError, match=r"encoder.onnx: ONNX Runtime differs from PyTorch by 0\.\d+, allowed 0.001"):
        check_onnx(path, inputs, features * 1.01)


def test_the_int8_model_loads_in_litert(bundle, model):
    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    (source,), (out,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (source["dtype"], out["dtype"]) == (np.int8, np.int8)
    assert list(source["shape"]) == [1, 16, 16, 3] and np.prod(out["shape"]) == 24
    assert source["quantization"] == pytest.approx((bundle.preprocessing.scale, bundle.preprocessing.zero_point))


def test_the_device_gives_tflite_micros_bytes(bundle, device, model, further):
    expected = run_reference(model, bundle.preprocessing(further))
    np.testing.assert_array_equal(np.stack([device.features(image) for image in further]), expected)
    assert len(np.unique(expected)) > 30, "features that are all alike prove nothing"


def test_every_golden_layer_is_the_devices(bundle, device):
    golden = bundle.golden()
    assert [name for name in golden if name.startswith("layer")] == [f"layer_{n:02d}" for n in range(10)]
    assert len(golden["input"]) == len(golden["features"]) == 4
    for number, values in enumerate(golden["input"]):
        for layer, found in enumerate(device.encode_layers(values)):
            np.testing.assert_array_equal(found, golden[f"layer_{layer:02d}"][number])
        np.testing.assert_array_equal(device.encode(values), golden["features"][number])


def test_the_report_adds_up(bundle, source):
    report, info = bundle.report, describe(bundle.image)
    layers = report["layers"]
    assert report["name"] == "small"
    assert report["image_bytes"] == len(bundle.image)
    for total in ("weights", "nonzeros", "macs", "dense_macs"):
        assert report[total] == sum(layer[total] for layer in layers)
    stored = sum(layer["weights" if layer["encoding"] == "dense" else "nonzeros"] for layer in layers)
    assert (info.stored_weights, info.macs, info.layers) == (stored, report["macs"], len(layers))
    assert (info.features, info.channels, info.height, info.width) == (24, *source.input_shape)
    assert [layer["kind"] for layer in layers] == [
        "conv", "max_pool", "conv", "conv", "add", "conv", "conv", "conv", "add", "mean"
    ]  # fmt: skip
    assert 0 < report["nonzeros"] < 0.25 * report["weights"]
    memory = report["activations"]
    assert memory["least_bytes"] <= memory["bytes"] <= 1.02 * memory["least_bytes"] < memory["tflite_micro_arena_bytes"]
    assert memory["peak_layer"] in [layer["name"] for layer in layers] and len(memory["alive_there"]) == 2
    checks = report["checks"]
    assert checks["onnx_runtime_largest_relative_difference"] < 1e-4
    assert checks["tflite_micro_images_equal_byte_for_byte"] == 60
    assert checks["onnx_int8_cosine"]["min"] > 0.999
    assert checks["golden_images_equal_layer_by_layer"] == 4
    assert 0.99 < checks["int8_cosine"]["min"] <= checks["int8_cosine"]["mean"] <= 1.0


def test_every_operation_of_torch_reaches_the_device(source, everything, images, tmp_path):
    """export_encoder itself compares the bytes with tflite-micro's."""
    of_four = {"input_shape": (4, 12, 10), "mean": (0.5,) * 4, "std": (0.25,) * 4}
    made = export_encoder(replace(source, **of_four, encoder=everything), images.random(60, (4, 12, 10)), tmp_path)
    kinds = {layer["kind"] for layer in made.report["layers"]}
    assert kinds == {"conv", "table", "average_pool", "max_pool", "mean", "add", "sub", "mul", "copy"}
    assert made.report["checks"]["tflite_micro_images_equal_byte_for_byte"] == 30
    assert made.report["checks"]["int8_cosine"]["mean"] > 0.95


def test_the_c_source_is_the_image(bundle, tmp_path):
    for name in ("entropi_image.c", "entropi_image.h"):
        shutil.copy(bundle.folder / "src" / name, tmp_path)
    reader = tmp_path / "reader.c"
    reader.write_text(
        '#include "entropi_image.h"\n'
        "int values(int which);\n"
        "int values(int which)\n{\n"
        "    static const unsigned known[] = {ENTROPI_IMAGE_FEATURES, ENTROPI_IMAGE_CHANNELS, ENTROPI_IMAGE_HEIGHT,\n"
        "                                     ENTROPI_IMAGE_WIDTH, sizeof entropi_image};\n"
        "    return (int)known[which];\n}\n"
    )
    built = ctypes.CDLL(str(toolchain.build_shared("image", (tmp_path / "entropi_image.c", reader))))
    assert [built.values(n) for n in range(5)] == [24, 3, 16, 16, len(bundle.image)]
    linked = (ctypes.c_uint8 * len(bundle.image)).in_dll(built, "entropi_image")
    assert bytes(linked) == bundle.image


@pytest.mark.parametrize("number", [0, 5])
def test_the_first_layer_that_differs_is_named(bundle, model, number):
    network, removed = remove(from_tflite(model))
    layer = network.layers[number]
    assert layer.kind == CONV
    live = np.unravel_index(np.abs(layer.weight.astype(int)).argmax(), layer.weight.shape)
    weight = layer.weight.copy()
    weight[live] = -weight[live]
    tampered = replace(network, layers=list(network.layers))
    tampered.layers[number] = replace(layer, weight=weight)
    image, _ = write_image(tampered, Centering(np.zeros(24, np.int8), 1.0))
    values = bundle.golden()["input"]
    with pytest.raises(CheckError) as failed:
        encoder._check(model, network, removed, image, bundle.preprocessing, values)
    assert str(failed.value).startswith(f"layer {number} ({layer.name}) is the first to differ from tflite-micro: ")
    assert str(failed.value).endswith(" values")


def test_a_wrong_calibration_shape_is_refused_first(source, images, tmp_path):
    told = []
    for shape in ((3, 16, 17), (1, 16, 16)):
        with pytest.raises(ValueError) as refused:
            encoder.export_encoder(source, images.random(5, shape), tmp_path / "new", told.append)
        assert str(refused.value) == (
            f"calibration images are uint8 of shape {[5, *shape]}; "
            "this encoder takes uint8 [N, 3, 16, 16] with N of 1 or more"
        )
    with pytest.raises(ValueError, match=r"shape \[0, 3, 16, 16\]"):
        encoder.export_encoder(source, images.random(0, source.input_shape), tmp_path / "new", told.append)
    assert not told and not (tmp_path / "new").exists()


@pytest.mark.parametrize("labels", [[0, 1], [0] * 40])
def test_labels_that_tell_no_held_out_images_apart_grade_nothing(source, images, tmp_path, labels):
    pixels = images.random(len(labels), source.input_shape).images
    report = export_encoder(source, Split(pixels, np.array(labels)), tmp_path / "build").report
    assert "head" not in report and "ridge_head" not in report and report["checks"]["int8_cosine"]


def test_pixels_are_an_encoder_without_layers(images, tmp_path):
    seen = images.random(40, (3, 5, 4))
    bundle = export_pixels(seen, tmp_path / "pixels")
    device = HostDevice(bundle, "16KiB")
    for image in images.random(20, (3, 5, 4), seed=1).images:
        np.testing.assert_array_equal(device.features(image), (image.astype(int) - 128).ravel())
    assert device.info.layers == 0 and bundle.report["layers"] == []
    assert (bundle.report["name"], bundle.report["macs"], bundle.report["nonzeros"]) == ("pixels", 0, 0)
    golden = bundle.golden()
    assert sorted(golden) == ["features", "input"]
    np.testing.assert_array_equal(golden["features"], golden["input"].reshape(4, -1))


def test_somebody_elses_files_stay(images, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"is not empty and holds no encoder\.entropi; give --out another folder"):
        export_pixels(images, tmp_path)
    with pytest.raises(ValueError, match=r"README\.md is a file; give --out a folder"):
        export_pixels(images, tmp_path / "README.md")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text() == "mine"
