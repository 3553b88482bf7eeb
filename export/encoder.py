"""From a torch encoder or an int8 TFLite model to a bundle: ONNX, int8 TFLite, the device image, golden vectors and a
report, all checked before any of it takes its place."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import nn

from entropi.device.bundle import GOLDEN, IMAGE, REPORT, Bundle, Preprocessing
from entropi.device.files import staged, write_atomically, write_json
from entropi.device.library import measure
from entropi.device.runtime import HostDevice
from entropi.device.session import SMALLEST_HEAD, HeadConfig
from entropi.export import ridge, sgd, tflite, tflm
from entropi.export.costs import DEFAULT_CORE, check_core
from entropi.export.fidelity import cosine
from entropi.export.flat import int8_ends
from entropi.export.graph import from_module
from entropi.export.image import Centering, LayerReport, Optimize, scratch_of, write_image
from entropi.export.integer import Network, Tensor
from entropi.export.narrow import INT8_BITS, WEIGHT_BITS, check_bits, narrow
from entropi.export.onnx import check_int8_onnx, check_onnx, quantise_onnx, write_onnx
from entropi.export.plan import peak, plan
from entropi.export.quality import MAX_DROP, grade, layer_noise, refuse
from entropi.export.reader import from_tflite
from entropi.export.removal import Removed, remove
from entropi.export.sources import write_sources
from entropi.export.train_signatures import train_signatures

TFLITE = "encoder_int8.tflite"
ONNX, ONNX_INT8, TRAIN = "encoder.onnx", "encoder_int8.onnx", "encoder_train.tflite"
OPTIONAL = (TFLITE, ONNX, ONNX_INT8, TRAIN)  # what an earlier export may have left that this one does not write
GOLDEN_IMAGES = 4
CHECKED_IMAGES = 100
CALIBRATION_IMAGES = 256
HELD_OUT_IMAGES = 1024
BATCH = 64


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
    """Images uint8 [N, C, H, W], as a dataset split has them. With an attribute `labels`, integers [N], what
    quantising costs a head is measured, too."""

    images: np.ndarray


@dataclass(frozen=True)
class _Images:
    """Those that set the integer network's ranges and the head's centring, and others, which judge it."""

    seen: np.ndarray
    held_out: np.ndarray
    labels: np.ndarray | None  # of held_out, where they tell classes apart


def export_encoder(
    source: EncoderSource,
    calibration: ImageSet,
    out: str | Path,
    on_stage: Callable[[str], None] = lambda stage: None,
    *,
    max_drop: float = MAX_DROP,
    optimize: Optimize = "size",
    core: str = DEFAULT_CORE,
    weight_bits: int = WEIGHT_BITS,
    train_head: HeadConfig | None = None,
) -> Bundle:
    """Write a bundle to the folder `out`, which is left as it was when anything fails.

    256 images drawn from `calibration`, or half of them if there are fewer than 512, set the integer network's ranges
    and the head's centring; up to 1,024 others judge it. The device image is run on 100 of these against tflite-micro
    and has to give the same bytes. `on_stage` is told what is being done. `max_drop` is how many points of accuracy
    int8 may cost the head that the device trains, on the held-out images, where they have labels. `optimize` and `core`
    are write_image's; `weight_bits`, 3 to 8, are what a weight of a sparse layer has (narrow). With `train_head`
    encoder_train.tflite is written, too: a LiteRT model that trains this head.
    Raises ValueError (calibration of the wrong shape, weight_bits, core), UnsupportedError, ConversionError,
    ImageError, OnnxError, CheckError or QualityError.
    """
    _check_folder(Path(out))
    check_bits(weight_bits)
    check_core(core)
    images = _draw(calibration, source.input_shape)
    on_stage("folding batch norm")
    module = source.encoder().eval()
    graph = from_module(module, source.input_shape)
    inputs = normalise(images.held_out, source.mean, source.std)
    with torch.no_grad():
        features = np.concatenate([module(batch).flatten(1).numpy() for batch in torch.from_numpy(inputs).split(BATCH)])

    with staged(Path(out), REPORT, OPTIONAL) as stage:
        on_stage("ONNX")
        write_onnx(graph, stage / ONNX)
        onnx_difference = check_onnx(stage / ONNX, inputs, features)

        seen = normalise(images.seen, source.mean, source.std)
        quantise_onnx(stage / ONNX, seen, stage / ONNX_INT8)
        onnx_int8_cosine = check_int8_onnx(stage / ONNX_INT8, stage / ONNX, inputs, features)

        on_stage("int8 TFLite")
        model = narrow(tflite.convert(graph, seen), weight_bits)

        on_stage("device image")
        whole = from_tflite(model)
        network, removed = remove(whole)
        first = network.tensors[network.input]
        preprocessing = Preprocessing(tuple(source.mean), tuple(source.std), first.scale, first.zero_point)
        image, layers = _image(network, preprocessing, preprocessing(images.seen), optimize, core)

        on_stage("checking against tflite-micro")
        values = preprocessing(images.held_out)
        golden, activations = _check(model, network, removed, image, preprocessing, values[:CHECKED_IMAGES])
        int8_features = _encode(image, preprocessing, values)

        if train_head is not None:
            on_stage("a head for LiteRT")
            _write_head(stage, train_head, _encode(image, preprocessing, preprocessing(images.seen)))

        on_stage("measuring what int8 costs")
        noise = layer_noise(graph, inputs[:GOLDEN_IMAGES], whole, activations)
        report = {
            "name": source.name,
            "weight_bits": weight_bits,
            **_aim(optimize, core),
            "checks": {
                "onnx_runtime_largest_relative_difference": onnx_difference,
                "onnx_int8_cosine": onnx_int8_cosine,
                **_equal(golden, values),
                "int8_cosine": cosine(_real(network.tensors[network.output], int8_features), features),
            },
            "signal_to_noise_db": noise,
        }
        if images.labels is not None:
            learned, closed = (grade(features, int8_features, images.labels, head.held_out) for head in (sgd, ridge))
            refuse(learned, noise, max_drop)
            report["head"] = asdict(learned) | {"drop": learned.drop, "max_drop": max_drop}
            report["ridge_head"] = asdict(closed) | {"drop": closed.drop}
        golden |= {"images": images.held_out[:GOLDEN_IMAGES], "torch": features[:GOLDEN_IMAGES]}
        report |= _savings(model, network, removed, optimize, layers)
        _write(stage, model, image, layers, preprocessing, golden, report)
    return Bundle.open(out)


def export_model(
    model: bytes,
    name: str,
    out: str | Path,
    on_stage: Callable[[str], None] = lambda stage: None,
    *,
    images: ImageSet | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    optimize: Optimize = "size",
    core: str = DEFAULT_CORE,
    weight_bits: int = INT8_BITS,
    train_head: HeadConfig | None = None,
) -> Bundle:
    """Write a bundle of an int8 TFLite model, whose output becomes the features, to the folder `out`, which is left as
    it was when anything fails.

    A QUANTIZE at its input and a DEQUANTIZE at its output are taken off. `mean` and `std`, of one value or one a
    channel, say how it wants its pixels, (pixel / 255 - mean) / std; without them int8 input = pixel - 128, as a model
    that was calibrated with all shades has it. `images` set the head's centring; without them random inputs do.
    `optimize`, `core`, `weight_bits` and `train_head` as in export_encoder, but with 8 bits the weights stay as they
    are. Raises ValueError (images of the wrong shape, mean or std of the wrong length, weight_bits, core),
    UnsupportedError, ConversionError, ImageError or CheckError.
    """
    _check_folder(Path(out))
    check_bits(weight_bits)
    check_core(core)
    on_stage("reading")
    model = int8_ends(model)
    whole = from_tflite(model)
    if weight_bits < INT8_BITS:
        model = narrow(model, weight_bits)
        whole = from_tflite(model)
    network, removed = remove(whole)
    first = network.tensors[network.input]
    preprocessing = _preprocessing(first, mean, std)
    if images is None:
        rng = np.random.default_rng(0)
        values = rng.integers(-128, 128, (CALIBRATION_IMAGES + CHECKED_IMAGES, *first.shape)).astype(np.int8)
        seen, held_out = values[:CALIBRATION_IMAGES], values[CALIBRATION_IMAGES:]
    else:
        drawn = _draw(images, first.shape)
        seen, held_out = preprocessing(drawn.seen), preprocessing(drawn.held_out)
    with staged(Path(out), REPORT, OPTIONAL) as stage:
        on_stage("device image")
        image, layers = _image(network, preprocessing, seen, optimize, core)
        on_stage("checking against tflite-micro")
        golden, _ = _check(model, network, removed, image, preprocessing, held_out[:CHECKED_IMAGES])
        if train_head is not None:
            on_stage("a head for LiteRT")
            _write_head(stage, train_head, _encode(image, preprocessing, seen))
        report = {"name": name, "weight_bits": weight_bits, **_aim(optimize, core)}
        report |= {"checks": _equal(golden, held_out)} | _savings(model, network, removed, optimize, layers)
        _write(stage, model, image, layers, preprocessing, golden, report)
    return Bundle.open(out)


def export_pixels(calibration: ImageSet, out: str | Path) -> Bundle:
    """A bundle whose encoder does nothing: the head learns from the pixels. It is what an encoder has to beat.

    Images are uint8 [N, C, H, W]; the int8 features are pixel - 128.
    """
    _check_folder(Path(out))
    images = _draw(calibration, calibration.images.shape[1:])
    channels, height, width = images.seen.shape[1:]
    network = Network({0: Tensor(channels, height, width, 1 / 255, -128)}, 0, 0)
    preprocessing = _preprocessing(network.tensors[0])
    image, layers = _image(network, preprocessing, preprocessing(images.seen), "size")
    values = preprocessing(images.held_out[:GOLDEN_IMAGES])
    golden = {"input": values, "features": _encode(image, preprocessing, values)}
    with staged(Path(out), REPORT, OPTIONAL) as stage:
        _write(stage, None, image, layers, preprocessing, golden, {"name": "pixels", "checks": {}})
    return Bundle.open(out)


def _check_folder(out: Path) -> None:
    """Raise ValueError where files of somebody else's could be overwritten."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give --out a folder")
    if out.is_dir() and not (out / IMAGE).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no {IMAGE}; give --out another folder")


def _draw(calibration: ImageSet, shape: Sequence[int]) -> _Images:
    """The images that are used, in an order that does not depend on how they are sorted."""
    images, labels = calibration.images, getattr(calibration, "labels", None)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != tuple(shape) or not len(images):
        raise ValueError(
            f"calibration images are {images.dtype} of shape {list(images.shape)}; "
            f"this encoder takes uint8 [N, {', '.join(map(str, shape))}] with N of 1 or more"
        )
    order = np.random.default_rng(0).permutation(len(images))
    seen = order[: min(CALIBRATION_IMAGES, -(-len(order) // 2))]
    held_out = order[len(seen) :][:HELD_OUT_IMAGES] if len(order) > 1 else seen
    has_classes = labels is not None and len(np.unique(labels[held_out])) > 1
    return _Images(images[seen], images[held_out], labels[held_out] if has_classes else None)


def _preprocessing(
    first: Tensor, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Preprocessing:
    """To the input `first`: as mean and std say, each what pixel - 128 needs where it is None."""
    mean = ((first.zero_point + 128) / 255,) if mean is None else tuple(mean)
    std = (1 / (255 * first.scale),) if std is None else tuple(std)
    for what, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, first.channels):
            raise ValueError(
                f"{what} has {len(values)} values and the input {first.channels} channels; give one, or one a channel"
            )
    mean, std = (values * first.channels if len(values) == 1 else values for values in (mean, std))
    return Preprocessing(mean, std, first.scale, first.zero_point)


def normalise(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """float32, the network's input, of uint8 images [N, C, H, W]; mean and std hold one value a channel."""
    column = (-1, 1, 1)
    return ((images / 255 - np.reshape(mean, column)) / np.reshape(std, column)).astype(np.float32)


def _device(image: bytes, preprocessing: Preprocessing) -> HostDevice:
    """The host runtime for encoding only."""
    need = measure(image, SMALLEST_HEAD)
    return HostDevice(Bundle(Path(), image, {}, preprocessing), need.total, head=SMALLEST_HEAD)


def _encode(image: bytes, preprocessing: Preprocessing, values: np.ndarray) -> np.ndarray:
    """The device's features, int8 [N, F], of its inputs."""
    return _device(image, preprocessing).encode_batch(values)


def _image(
    network: Network, preprocessing: Preprocessing, values: np.ndarray, optimize: Optimize, core: str = DEFAULT_CORE
) -> tuple[bytes, list[LayerReport]]:
    """The image, its centring taken from the features of `values`, and what its layers cost."""
    out = network.tensors[network.output]
    draft, _ = write_image(network, Centering(np.zeros(out.channels * out.height * out.width, np.int8), 1.0))
    return write_image(network, Centering.of(_encode(draft, preprocessing, values)), optimize, core)


def _aim(optimize: Optimize, core: str) -> dict[str, str]:
    """For the report: what the image was made for. The smallest image is the same for every core."""
    return {"optimize": optimize} | ({"core": core} if optimize == "speed" else {})


def _check(
    model: bytes,
    network: Network,
    removed: Removed,
    image: bytes,
    preprocessing: Preprocessing,
    values: np.ndarray,
) -> tuple[dict[str, np.ndarray], dict[int, np.ndarray]]:
    """Golden vectors, after the features of `values` proved equal to tflite-micro's; and tflite-micro's activations of
    the golden inputs, by tensor."""
    device = _device(image, preprocessing)
    golden = {"input": values[:GOLDEN_IMAGES]}
    whole = network.last_writers()
    layers, features = tflm.run_jobs([tflm.Job(model, golden["input"], list(whole)), tflm.Job(model, values)])
    outputs = [device.encode_layers(v) for v in golden["input"]]
    for number in whole.values():
        layer = network.layers[number]
        stays = layers.activations[layer.output][:, removed.channels[layer.output]]
        golden[f"layer_{number:02d}"] = stays
        wrong = sum(int((o[number] != e).sum()) for o, e in zip(outputs, stays, strict=True))
        if wrong:
            raise CheckError(f"layer {number} ({layer.name}) is the first to differ from tflite-micro: {wrong} values")
    wrong = sum((device.encode(v) != expected).any() for v, expected in zip(values, features.outputs, strict=True))
    if wrong:
        raise CheckError(f"features of {wrong} of {len(values)} images differ from tflite-micro's")
    golden["features"] = features.outputs[:GOLDEN_IMAGES]
    return golden, layers.activations


def _equal(golden: dict[str, np.ndarray], values: np.ndarray) -> dict[str, int]:
    """What _check has shown."""
    return {
        "tflite_micro_images_equal_byte_for_byte": len(values[:CHECKED_IMAGES]),
        "golden_images_equal_layer_by_layer": len(golden["input"]),
    }


def _savings(
    model: bytes, network: Network, removed: Removed, optimize: Optimize, layers: Sequence[LayerReport]
) -> dict:
    """For the report: what the removals saved, and where the memory of the activations goes."""
    scratch = scratch_of(layers)
    planned = plan(network, optimize, scratch)
    places, most = planned.places, peak(network, planned)
    names = ("input", *(layer.name for layer in network.layers), "output")
    alive = [
        {"name": network.tensors[i].name, "shape": network.tensors[i].shape, "bytes": places[i].bytes}
        for i in most.tensors
    ]
    kinds = {kind: asdict(getattr(removed, kind)) for kind in ("constant", "unread", "folded")}
    return {
        "removed": {**kinds, "layers": list(removed.layers)},
        "activations": {
            "bytes": planned.bytes,
            "least_bytes": most.bytes,
            "border_bytes": sum(places[i].bytes - math.prod(network.tensors[i].shape) for i in most.tensors),
            "scratch_bytes": scratch.get(most.layer, 0),
            "peak_layer": names[most.layer + 1],
            "alive_there": alive,
            "tflite_micro_arena_bytes": tflm.arena_bytes(model),
        },
    }


def _real(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """float32, what int8 values of a tensor stand for."""
    return (values.astype(np.float32) - tensor.zero_point) * tensor.scale


def _write_head(folder: Path, head: HeadConfig, features: np.ndarray) -> None:
    """A model that trains `head`, centred as the image is: on int8 features [N, F]."""
    write_atomically(folder / TRAIN, train_signatures(Centering.of(features), head, features))


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _write(
    folder: Path,
    model: bytes | None,
    image: bytes,
    layers: list[LayerReport],
    preprocessing: Preprocessing,
    golden: dict[str, np.ndarray],
    report: dict,
) -> None:
    """Write what every bundle has; beside the image's bytes those of the .tflite file, which stores every zero, and
    what gzip -9 makes of it."""
    files = {"image_bytes": len(image)}
    if model is not None:
        write_atomically(folder / TFLITE, model)
        files |= {"tflite_bytes": len(model), "tflite_gzip_bytes": len(gzip.compress(model, 9, mtime=0))}
    write_atomically(folder / IMAGE, image)
    write_atomically(folder / GOLDEN, _npz(golden))
    write_sources(folder, image)
    totals = {
        **files,
        "weights": sum(r.weights for r in layers),
        "nonzeros": sum(r.nonzeros for r in layers),
        "macs": sum(r.macs for r in layers),
        "dense_macs": sum(r.dense_macs for r in layers),
    }
    write_json(
        folder / REPORT,
        {
            **report,
            "preprocessing": asdict(preprocessing),
            **totals,
            "layers": [asdict(r) for r in layers],
        },
    )
