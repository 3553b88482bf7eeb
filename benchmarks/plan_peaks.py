"""The RAM that activations and scratch take: the plan's peak, for the fewest bytes and for the fewest instructions, the
least that any plan needs, and tflite-micro's arena.

    python benchmarks/plan_peaks.py

Full-size networks with random weights, as the converter makes them int8. Writes results/plan_peaks.json and
the table of docs/export.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from pages import ROOT, filled, markdown
from torch import nn

from entropi.device.files import write_atomically, write_json
from entropi.export.graph import from_module
from entropi.export.image import Centering, scratch_of, write_image
from entropi.export.integer import Network
from entropi.export.plan import Optimize, Plan, alive_bytes, peak, plan
from entropi.export.reader import from_tflite
from entropi.export.tflite import convert
from entropi.export.tflm import arena_bytes
from entropi.host.networks import archs
from entropi.host.provenance import provenance

sys.path.insert(0, str(ROOT / "tests"))
from architectures import autoencoder, mobilenet_v1, settled, vgg  # noqa: E402

RESULT = ROOT / "results" / "plan_peaks.json"
PAGE = ROOT / "docs" / "export.md"
COLUMNS = {
    "alive_bytes": "alive",
    "tensor_bytes": "tensors",
    "peak_bytes": "with scratch",
    "tensor_bytes_for_speed": "tensors, `speed`",
    "peak_bytes_for_speed": "with scratch, `speed`",
    "tflite_micro_arena_bytes": "tflite-micro's arena",
}
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


def planned_for(network: Network, optimize: Optimize) -> Plan:
    """The plan of an image, scratch included."""
    out = network.tensors[network.output]
    centering = Centering(np.zeros(out.channels * out.height * out.width, np.int8), 1.0)
    return plan(network, optimize, scratch_of(write_image(network, centering, optimize)[1]))


def measure(make: Callable[[], nn.Module], shape: tuple[int, int, int]) -> dict:
    torch.manual_seed(0)
    graph = from_module(settled(make(), shape), shape)
    model = convert(graph, np.random.default_rng(0).normal(size=(CALIBRATION_IMAGES, *shape)))
    network = from_tflite(model)
    planned, fast = (planned_for(network, optimize) for optimize in ("size", "speed"))
    most, alive = peak(network, planned), alive_bytes(network)
    return {
        "tensor_bytes": plan(network).bytes,
        "alive_bytes": alive,
        "peak_bytes": planned.bytes,
        "least_bytes": most.bytes,
        "tensor_bytes_for_speed": plan(network, "speed").bytes,
        "peak_bytes_for_speed": fast.bytes,
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
    write_atomically(PAGE, filled(PAGE.read_text(), tables()).encode())


def tables() -> dict[str, str]:
    """The page's, by marker."""
    rows = json.loads(RESULT.read_bytes())["networks"]
    lines = ((name, *(f"{row[key]:,}" for key in COLUMNS)) for name, row in rows.items())
    return {"peaks": markdown(("network", *(f">{title}" for title in COLUMNS.values())), lines)}


if __name__ == "__main__":
    main()
