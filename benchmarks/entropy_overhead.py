"""What the estimators of a selection cost over the bare forward pass of the encoder, in processor time of one thread.

    python benchmarks/entropy_overhead.py [--images N] [--sizes N ...] [--repeats N]

Every estimator on so many images, and the default one on as many as each target of Table 1 has. Every repeat times the
forward pass and then everything else, each part apart, so that a busy machine slows all of them alike; a ratio is taken
within its repeat. Weights and pixels are random, on which the cost does not depend. Writes
results/entropy_overhead.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.linalg  # noqa: F401  before threads are limited, which does nothing to a library that is loaded later
import torch
from threadpoolctl import threadpool_limits
from torch import nn
from torchvision.models import mobilenet_v3_large, resnet18

from entropi.device.files import write_json
from entropi.host.data import Split
from entropi.host.entropy import DEFAULT, ESTIMATORS, Features, measure
from entropi.host.networks.inference import outputs
from entropi.host.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "numpy", "scipy")
DRAWS = 50
# Training images: CIFAR-100; PACS; PACS without photos, art, cartoons, sketches; what there is of VLCS.
SIZES = (10_000, 8_977, 8_321, 7_943, 7_647, 6_062, 706)


def encoders() -> dict[str, nn.Module]:
    """Both of the paper's networks without their head."""
    torch.manual_seed(0)
    resnet, mobilenet = resnet18(), mobilenet_v3_large()
    resnet.fc, mobilenet.classifier[-1] = nn.Identity(), nn.Identity()
    return {"resnet18": resnet, "mobilenet_v3_large": mobilenet}


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def spread(values: Sequence[float]) -> dict[str, float]:
    return {name: round(f(values), 4) for name, f in (("median", statistics.median), ("least", min), ("most", max))}


def overhead(encoder: nn.Module, images: Split, repeats: int, *, everything: bool) -> dict:
    """Seconds of the forward pass, and what the estimators, or the default alone, take as a fraction of it."""
    encoder = encoder.to(memory_format=torch.channels_last).eval()
    values = outputs(encoder, images)

    def estimate(*names: str) -> Callable[[], object]:
        return lambda: measure(Features(values), names)

    def bootstrap() -> None:
        for draw in np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values))):
            ESTIMATORS[DEFAULT](Features(values[draw]))

    parts = {name: estimate(name) for name in (ESTIMATORS if everything else (DEFAULT,))}
    if everything:
        parts |= {"all together": estimate(*ESTIMATORS), f"bootstrap of {DEFAULT}, {DRAWS} draws": bootstrap}
    forward, times = [], {name: [] for name in parts}
    for repeat in range(repeats + 1):
        taken = seconds(lambda: outputs(encoder, images))
        fractions = {name: seconds(work) / taken for name, work in parts.items()}
        if repeat:  # the first one warms up
            forward.append(taken)
            for name, fraction in fractions.items():
                times[name].append(fraction)
    return {
        "features": values.shape[1],
        "forward_seconds": spread(forward),
        "fraction_of_forward": {name: spread(fractions) for name, fractions in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=SIZES[0], help="images of 3x32x32 for every estimator")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="numbers of images for the default one")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    most = max(options.images, *options.sizes)
    pixels = np.random.default_rng(0).integers(0, 256, (most, 3, 32, 32), np.uint8)
    torch.set_num_threads(1)

    def measured(encoder: nn.Module, count: int, everything: bool) -> dict:
        split = Split(pixels[:count], np.zeros(count, np.int64))
        found = overhead(encoder, split, options.repeats, everything=everything)
        print(f"{count:,} images: {DEFAULT} {found['fraction_of_forward'][DEFAULT]}", flush=True)
        return found

    with threadpool_limits(1):
        by_size = {
            name: {size: measured(encoder, size, False)["fraction_of_forward"][DEFAULT] for size in options.sizes}
            for name, encoder in encoders().items()
        }
        networks = {name: measured(encoder, options.images, True) for name, encoder in encoders().items()}
    sizes = " ".join(map(str, options.sizes))
    result = {
        "command": f"python benchmarks/entropy_overhead.py --images {options.images} --sizes {sizes} "
        f"--repeats {options.repeats}",
        "measured": "processor seconds (time.process_time)",
        "threads": 1,
        "images": options.images,
        "input": [3, 32, 32],
        "repeats": options.repeats,
        "default_estimator": DEFAULT,
        **provenance(*PACKAGES),
        "networks": networks,
        "default_by_images": by_size,
    }
    write_json(ROOT / "results" / "entropy_overhead.json", result)


if __name__ == "__main__":
    main()
