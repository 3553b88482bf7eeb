"""From a torch encoder to a bundle: ONNX, int8 TFLite, the device image, golden vectors and a report, all checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from entropi.device.bundle import GOLDEN, IMAGE, REPORT, Bundle, Preprocessing
from entropi.device.files import write_atomically, write_json
from entropi.device.library import measure
from entropi.device.runtime import HostDevice
from entropi.device.session import HeadConfig
from entropi.export import tflite, tflm
from entropi.export.c_source import c_header, c_source
from entropi.export.graph import from_module
from entropi.export.image import Centering, LayerReport, write_image
from entropi.export.integer import Network, Tensor
from entropi.export.onnx import check_onnx, write_onnx
from entropi.export.reader import from_tflite

GOLDEN_IMAGES = 4
CHECKED_IMAGES = 100
CALIBRATION_IMAGES = 256


class CheckError(RuntimeError):
    """The device's features differ from tflite-micro's; the message names the first layer that differs."""


class EncoderSource(Protocol):
    """What is exported: a rung of a ladder, or anything with the same attributes."""

    name: str
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def encoder(self) -> nn.Module: ...


class ImageSet(Protocol):
    """Images uint8 [N, C, H, W], as a dataset split has them."""

    images: np.ndarray


def export_encoder(
    source: EncoderSource,
    calibration: ImageSet,
    out: str | Path,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> Bundle:
    """Write a bundle to the folder `out`.

    The first 256 images of `calibration` set the integer network's ranges and the head's centring. The device image is
    run on 100 of them against tflite-micro and has to give the same bytes. `on_stage` is told what is being done.
    Raises ValueError (calibration of the wrong shape), UnsupportedError, ConversionError, ImageError, OnnxError or
    CheckError.
    """
    images = _calibration(calibration, source.input_shape)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    on_stage("folding batch norm")
    module = source.encoder().eval()
    graph = from_module(module, source.input_shape)
    inputs = _normalise(images, source.mean, source.std)
    with torch.no_grad():
        features = module(torch.from_numpy(inputs)).flatten(1).numpy()

    on_stage("ONNX")
    write_onnx(graph, out / "encoder.onnx")
    onnx_difference = check_onnx(out / "encoder.onnx", inputs, features)

    on_stage("int8 TFLite")
    model = tflite.convert(graph, inputs)
    write_atomically(out / "encoder_int8.tflite", model)

    on_stage("device image")
    network = from_tflite(model)
    first = network.tensors[network.input]
    preprocessing = Preprocessing(tuple(source.mean), tuple(source.std), first.scale, first.zero_point)
    image, layers, int8_features = _image(network, preprocessing, images)

    on_stage("checking against tflite-micro")
    values = preprocessing(images[:CHECKED_IMAGES])
    golden = _check(model, network, image, preprocessing, values)
    report = {
        "name": source.name,
        "checks": {
            "onnx_runtime_largest_relative_difference": onnx_difference,
            "tflite_micro_images_equal_byte_for_byte": len(values),
            "golden_images_equal_layer_by_layer": len(golden["input"]),
            "int8_cosine": _cosine(network.tensors[network.output], int8_features, features),
        },
    }
    return _write(out, image, layers, preprocessing, golden, report)


def export_pixels(calibration: ImageSet, out: str | Path) -> Bundle:
    """A bundle whose encoder does nothing: the head learns from the pixels. It is what an encoder has to beat.

    Images are uint8 [N, C, H, W]; the int8 features are pixel - 128.
    """
    images = _calibration(calibration, calibration.images.shape[1:])
    channels, height, width = images.shape[1:]
    network = Network({0: Tensor(channels, height, width, 1 / 255, -128)}, 0, 0)
    preprocessing = Preprocessing((0.0,) * channels, (1.0,) * channels, 1 / 255, -128)
    image, layers, features = _image(network, preprocessing, images)
    golden = {"input": preprocessing(images[:GOLDEN_IMAGES]), "features": features[:GOLDEN_IMAGES]}
    return _write(Path(out), image, layers, preprocessing, golden, {"name": "pixels", "checks": {}})


def _calibration(calibration: ImageSet, shape: Sequence[int]) -> np.ndarray:
    """The images that are used, uint8 [N, C, H, W] as they must be."""
    images = calibration.images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != tuple(shape) or not len(images):
        raise ValueError(
            f"calibration images are {images.dtype} of shape {list(images.shape)}; "
            f"this encoder takes uint8 [N, {', '.join(map(str, shape))}] with N of 1 or more"
        )
    return images[:CALIBRATION_IMAGES]


def _normalise(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    column = (-1, 1, 1)
    return ((images / 255 - np.reshape(mean, column)) / np.reshape(std, column)).astype(np.float32)


def _device(image: bytes, preprocessing: Preprocessing) -> HostDevice:
    """The host runtime for encoding only: its head is the smallest there is."""
    head = HeadConfig(classes=2, batch=1)
    return HostDevice(Bundle(Path(), image, {}, preprocessing), measure(image, head).total, head=head)


def _image(
    network: Network, preprocessing: Preprocessing, images: np.ndarray
) -> tuple[bytes, list[LayerReport], np.ndarray]:
    """The image, what its layers cost, and the features of `images` that its centring was taken from."""
    first = network.tensors[network.output]
    count = first.channels * first.height * first.width
    draft, _ = write_image(network, Centering(np.zeros(count, np.int8), 1.0))
    device = _device(draft, preprocessing)
    features = np.stack([device.features(image) for image in images])
    image, layers = write_image(network, Centering.of(features))
    return image, layers, features


def _check(
    model: bytes, network: Network, image: bytes, preprocessing: Preprocessing, values: np.ndarray
) -> dict[str, np.ndarray]:
    """Golden vectors, after the features of `values` proved equal to tflite-micro's."""
    device = _device(image, preprocessing)
    golden = {"input": values[:GOLDEN_IMAGES]}
    whole = network.last_writers()
    expected = tflm.run_layers(model, golden["input"], list(whole))
    outputs = [device.encode_layers(v) for v in golden["input"]]
    for number in whole.values():
        layer = network.layers[number]
        golden[f"layer_{number:02d}"] = expected[layer.output]
        wrong = sum(int((o[number] != e).sum()) for o, e in zip(outputs, expected[layer.output], strict=True))
        if wrong:
            raise CheckError(f"layer {number} ({layer.name}) is the first to differ from tflite-micro: {wrong} values")
    reference = tflm.run_reference(model, values)
    features = np.stack([device.encode(v) for v in values])
    if (features != reference).any():
        wrong = int((features != reference).any(axis=1).sum())
        raise CheckError(f"features of {wrong} of {len(values)} images differ from tflite-micro's")
    golden["features"] = reference[:GOLDEN_IMAGES]
    return golden


def _cosine(tensor: Tensor, int8_features: np.ndarray, features: np.ndarray) -> dict[str, float]:
    """Cosine between the int8 features, as real numbers, and the float32 ones: mean and smallest."""
    real = (int8_features.astype(np.float32) - tensor.zero_point) * tensor.scale
    norms = np.linalg.norm(real, axis=1) * np.linalg.norm(features, axis=1)
    cosine = (real * features).sum(axis=1) / np.maximum(norms, 1e-12)
    return {"mean": float(cosine.mean()), "min": float(cosine.min())}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _write(
    out: Path,
    image: bytes,
    layers: list[LayerReport],
    preprocessing: Preprocessing,
    golden: dict[str, np.ndarray],
    report: dict,
) -> Bundle:
    """Write the image and, last, the report that makes the folder a bundle."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / IMAGE, image)
    write_atomically(out / GOLDEN, _npz(golden))
    write_atomically(out / "entropi_image.c", c_source(image).encode())
    write_atomically(out / "entropi_image.h", c_header(image).encode())
    totals = {
        "image_bytes": len(image),
        "weights": sum(r.weights for r in layers),
        "nonzeros": sum(r.nonzeros for r in layers),
        "macs": sum(r.macs for r in layers),
        "dense_macs": sum(r.dense_macs for r in layers),
    }
    write_json(
        out / REPORT,
        {
            **report,
            "preprocessing": asdict(preprocessing),
            **totals,
            "layers": [asdict(r) for r in layers],
        },
    )
    return Bundle.open(out)
