"""Bytes of the device image against the Shannon bound of its weights.

    python benchmarks/image_size.py SOURCE [SOURCE ...] --images SPEC [--alpha A] [--weight-bits N]

A SOURCE is a ladder, whose rung nearest to alpha is taken, or resnet18_trial_rung_alpha0.0075.npz: a ResNet18 with
NAME.shape, NAME.index and NAME.value for every convolution. SPEC names the images that set the integer ranges. Weights
of sparse layers have N bits; bytes stand beside the bound of these weights and of the converter's 8-bit ones. Writes
results/image_size.json.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet18

from entropi.device.files import write_json
from entropi.export import tflite
from entropi.export.graph import from_module
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV, Layer, Network
from entropi.export.narrow import WEIGHT_BITS, narrow
from entropi.export.reader import from_tflite
from entropi.export.rows import forms, shannon_bound
from entropi.host import data
from entropi.host.provenance import provenance
from entropi.host.training.ladder import Ladder

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "tensorflow", "numpy")
CALIBRATION_IMAGES = 256
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def trial_rung(path: Path) -> nn.Module:
    """The encoder in the .npz."""
    with np.load(path) as arrays:
        state = {name: torch.from_numpy(arrays[name]) for name in arrays.files if name.count(".weight.") == 0}
        for name in (name.removesuffix(".shape") for name in arrays.files if name.endswith(".shape")):
            weight = np.zeros(arrays[f"{name}.shape"], np.float32)
            weight.flat[arrays[f"{name}.index"]] = arrays[f"{name}.value"]
            state[name] = torch.from_numpy(weight)
    model = resnet18(num_classes=len(state["fc.bias"]))
    model.load_state_dict(state, strict=False)  # the file leaves out num_batches_tracked
    model.fc = nn.Identity()
    return model.eval()


def quantised(source: Path, alpha: float, images: np.ndarray) -> tuple[str, bytes]:
    """A source's name and int8 TFLite model; images are uint8 [N, 3, H, W]."""
    if source.is_dir():
        rung = min(Ladder.open(source), key=lambda r: abs(math.log(r.alpha / alpha)))
        name, encoder, mean, std = f"{rung.name}, alpha {rung.alpha:.4f}", rung.encoder(), rung.mean, rung.std
    else:
        name, encoder, mean, std = source.stem, trial_rung(source), CIFAR_MEAN, CIFAR_STD
    column = (-1, 1, 1)
    inputs = ((images / 255 - np.reshape(mean, column)) / np.reshape(std, column)).astype(np.float32)
    return name, tflite.convert(from_module(encoder, images.shape[1:]), inputs)


def compare(model: bytes, weight_bits: int) -> dict:
    """What the weights take in every form, and the image under either aim."""
    whole, network = from_tflite(model), from_tflite(narrow(model, weight_bits))
    ways = [forms(layer.weight) for layer in _convolutions(network)]
    bounds = {"bound": _bound(network), "bound_of_8_bits": _bound(whole)}
    return {
        "nonzeros": int(sum(np.count_nonzero(layer.weight) for layer in _convolutions(network))),
        **{f"{name}_bytes": round(bound) for name, bound in bounds.items()},
        "weight_bytes_by_form": {w[0].name: sum(form.bytes for form in w) for w in zip(*ways, strict=True)},
        "optimize": {aim: _image(network, aim, bounds) for aim in ("size", "speed")},
    }


def _convolutions(network: Network) -> list[Layer]:
    return [layer for layer in network.layers if layer.kind == CONV]


def _bound(network: Network) -> float:
    return sum(shannon_bound(layer.weight) for layer in _convolutions(network))


def _image(network: Network, aim: str, bounds: dict[str, float]) -> dict:
    out = network.tensors[network.output]
    image, reports = write_image(network, Centering(np.zeros(out.channels * out.height * out.width, np.int8), 1.0), aim)
    stored = [r for r in reports if r.encoding]
    weights = 0
    layers = []
    for layer, r in zip(_convolutions(network), stored, strict=True):
        form = next(form for form in forms(layer.weight) if form.name == r.encoding)
        weights += form.bytes
        layers.append(
            {
                "name": r.name, "shape": list(layer.weight.shape), "density": r.nonzeros / r.weights,
                "encoding": r.encoding, "weight_bytes": form.bytes, "parameter_bytes": r.bytes - form.bytes,
                "bound_bytes": round(r.bound, 1), "reason": r.reason,
            }
        )  # fmt: skip
    return {
        "weight_bytes": weights,
        **{f"weights_over_{name}": round(weights / bound, 4) for name, bound in bounds.items()},
        "image_bytes": len(image),
        **{f"image_over_{name}": round(len(image) / bound, 4) for name, bound in bounds.items()},
        "layers": layers,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE")
    parser.add_argument("--images", required=True, metavar="SPEC", help="such as npz:cifar10.npz")
    parser.add_argument("--alpha", type=float, default=0.0075)
    parser.add_argument("--weight-bits", type=int, default=WEIGHT_BITS)
    options = parser.parse_args()
    images = data.load(options.images).train.images[:CALIBRATION_IMAGES]
    models = dict(quantised(source, options.alpha, images) for source in options.sources)
    result = {
        "command": "python benchmarks/image_size.py "
        + " ".join(source.name for source in options.sources)
        + f" --images {options.images.rpartition('/')[2]} --alpha {options.alpha}"
        + f" --weight-bits {options.weight_bits}",
        "claim": "weights at most 1.10 times their Shannon bound, the image at most 1.35 times that of 8-bit weights",
        **provenance(*PACKAGES),
        "rungs": {name: compare(model, options.weight_bits) for name, model in models.items()},
    }
    write_json(ROOT / "results" / "image_size.json", result)


if __name__ == "__main__":
    main()
