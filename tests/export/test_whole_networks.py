"""Whole networks, dense and pruned: byte for byte tflite-micro's on a thousand inputs and the extremes, in an arena
hardly larger than what is alive at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from architectures import NARROW, settled
from inputs import extremes
from networks import opened

from entropi.device import Bundle, HostDevice
from entropi.export import export_model
from entropi.export.graph import from_module
from entropi.export.integer import Network
from entropi.export.plan import peak, plan
from entropi.export.reader import from_tflite
from entropi.export.removal import Removed, remove
from entropi.export.tflite import convert_all
from entropi.export.tflm import Job, Result, run_jobs

RANDOM = 1000
LAYER_BY_LAYER = 40  # of these, and all extremes
SPARSE = ("mobilenet_v1", "mobilenet_v3_small", "resnet8", "branches")
CASES = [*((name, 1.0) for name in NARROW), *((name, 0.08) for name in SPARSE)]


@dataclass(frozen=True)
class Exported:
    """A model in a bundle, what tflite-micro makes of `inputs`, int8 [N, C, H, W], and of the first of them layer by
    layer."""

    bundle: Bundle
    network: Network
    removed: Removed
    inputs: np.ndarray
    features: Result
    layers: Result


def inputs(shape: tuple[int, int, int]) -> np.ndarray:
    """The extremes, and as many inputs with all values alike probable as with values as they were calibrated."""
    rng = np.random.default_rng(0)
    even = rng.integers(-128, 128, (RANDOM // 2, *shape))
    usual = rng.normal(0, 32, (RANDOM // 2, *shape)).round().clip(-128, 127)
    rest = np.stack([even, usual], 1).reshape(RANDOM, *shape)
    return np.concatenate([extremes(shape), rest.astype(np.int8)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[tuple[str, float], Exported]:
    """All of them, with as few processes of TensorFlow and tflite-micro as can be."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    graphs = []
    for name, density in CASES:
        make, shape = NARROW[name]
        graphs.append((from_module(settled(make(), shape, density), shape), rng.normal(size=(6, *shape))))
    folder = tmp_path_factory.mktemp("whole")
    made, jobs = [], []
    for (name, density), model in zip(CASES, convert_all(graphs), strict=True):
        bundle = export_model(model, name, folder / f"{name}_{density}")
        network, removed = remove(from_tflite(model))
        values = inputs(NARROW[name][1])
        jobs.append(Job(model, values))
        jobs.append(Job(model, values[: len(values) - RANDOM + LAYER_BY_LAYER], list(network.last_writers())))
        made.append((bundle, network, removed, values))
    results = run_jobs(jobs)
    pairs = zip(results[::2], results[1::2], strict=True)
    return {case: Exported(*parts, *pair) for case, parts, pair in zip(CASES, made, pairs, strict=True)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]:g}")
def test_every_byte_is_tflite_micros(exported, case):
    found = exported[case]
    device = HostDevice(found.bundle, "1MiB")
    features = np.stack([device.encode(values) for values in found.inputs])
    np.testing.assert_array_equal(features, found.features.outputs)
    fast = opened(found.network, "speed")
    np.testing.assert_array_equal(np.stack([fast.encode(values) for values in found.inputs]), features)
    whole = found.network.last_writers()
    for image, values in enumerate(found.inputs[: len(found.layers.outputs)]):
        outputs = device.encode_layers(values)
        for tensor, number in whole.items():
            expected = found.layers.activations[tensor][image][found.removed.channels[tensor]]
            np.testing.assert_array_equal(outputs[number], expected, err_msg=found.network.layers[number].name)

    varied = [len(np.unique(found.layers.activations[tensor])) for tensor in whole]
    assert np.median(varied) > 100 and len(np.unique(features)) > 60, "values that are all alike prove nothing"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]:g}")
def test_the_report_holds_the_peak_the_bound_and_tflite_micros_arena(exported, case):
    found = exported[case]
    memory = found.bundle.report["activations"]
    assert memory["bytes"] <= 1.02 * memory["least_bytes"]
    assert memory["bytes"] < memory["tflite_micro_arena_bytes"]
    scratch = {number: layer["scratch"] for number, layer in enumerate(found.bundle.report["layers"])}
    planned = plan(found.network, "size", {number: size for number, size in scratch.items() if size})
    assert (memory["bytes"], memory["least_bytes"]) == (planned.bytes, peak(found.network, planned).bytes)
