"""The RAM that activations take: the plan's peak, for the fewest bytes and for the fewest instructions, the least that
any plan needs, and tflite-micro's arena.

    python benchmarks/plan_peaks.py

Full-size networks with random weights, as the converter makes them int8. Writes results/plan_peaks.json.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from entropi.device.files import write_json
from entropi.export.graph import from_module
from entropi.export.plan import alive_bytes, peak, plan
from entropi.export.reader import from_tflite
from entropi.export.tflite import convert
from entropi.export.tflm import arena_bytes
from entropi.host.networks import archs
from entropi.host.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from architectures import autoencoder, mobilenet_v1, settled, vgg  # noqa: E402

RESULT = ROOT / "results" / "plan_peaks.json"
CALIBRATION_IMAGES = 4  # ranges do not change where a tensor lies
VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512)


def encoder(name: str) -> Callable[[], nn.Module]:
    """An architecture of ours or torchvision's, without its head."""
    return lambda: archs.split(archs.build(name, 2))[0]


# By name: the factory and the input's shape.
NETWORKS = {
    "MobileNetV1, width 0.25, 96x96": (partial(mobilenet_v1, 0.25, 2), (3, 96, 96)),
    "MobileNetV2, 96x96": (encoder("mobilenet_v2"), (3, 96, 96)),
    "MobileNetV3-Small, 96x96": (encoder("mobilenet_v3_small"), (3, 96, 96)),
    "MobileNetV3-Large, 96x96": (encoder("mobilenet_v3_large"), (3, 96, 96)),
    "VGG11, 32x32": (partial(vgg, *VGG11), (3, 32, 32)),
    "ResNet18, 96x96": (encoder("resnet18"), (3, 96, 96)),
    "ResNet18, 32x32": (encoder("resnet18"), (3, 32, 32)),
    "ResNet8, 32x32": (encoder("resnet8"), (3, 32, 32)),
    "autoencoder, 640": (autoencoder, (640, 1, 1)),
}


def measure(make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> dict:
    torch.manual_seed(0)
    graph = from_module(settled(make(), shape), shape)
    model = convert(graph, np.random.default_rng(0).normal(size=(CALIBRATION_IMAGES, *shape)))
    network = from_tflite(model)
    places, total = plan(network)
    most, alive = peak(network, places), alive_bytes(network)
    return {
        "peak_bytes": total,
        "least_bytes": most.bytes,
        "alive_bytes": alive,
        "peak_over_alive": round(total / alive, 4),
        "peak_bytes_for_speed": plan(network, "speed")[1],
        "tflite_micro_arena_bytes": arena_bytes(model),
        "peak_layer": ("input", *(layer.name for layer in network.layers), "output")[most.layer + 1],
    }


def main() -> None:
    rows = {}
    for name, (make, shape) in NETWORKS.items():
        rows[name] = measure(make, shape)
        print(name, rows[name], flush=True)
    versions = provenance("torch", "torchvision", "tensorflow", "tflite-micro")
    write_json(RESULT, {"command": "python benchmarks/plan_peaks.py", **versions, "networks": rows})


if __name__ == "__main__":
    main()
