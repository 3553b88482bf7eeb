"""Learning on every emulated core: the host's bits, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from heads import head_bundle

from entropi.device import HeadConfig, HostDevice
from entropi.device.budget import recipe
from entropi.device.toolchain import CORES
from entropi.export.image import Centering
from entropi.firmware_sim import Simulator, board
from entropi.firmware_sim.emulator import MODELS

EMULATED = sorted(set(CORES) & set(MODELS))
MODES = [(12, 0.9, 4), (8, 0.9, 4), (4, 0.0, 1), (2, 0.0, 2)]
# Most instructions that a sample may take: 512 features, 5 classes, its share of the step included.
MOST = {"cortex-m4f": 30_000, "cortex-m0plus": 300_000}


def lesson(features: int, classes: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 features [count, features] around one mean a class, and labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, count)
    means = rng.normal(-50, 12, (classes, features))
    return (means[labels] + rng.normal(0, 30, (count, features))).round().clip(-128, 127).astype(np.int8), labels


@pytest.mark.parametrize("core", EMULATED)
@pytest.mark.parametrize(("bytes_per_parameter", "momentum", "batch"), MODES)
def test_every_core_learns_the_hosts_bits(core, bytes_per_parameter, momentum, batch):
    """300 samples of 7 classes, two of them new, with replay and all that decays; a step is taken early at times."""
    head = HeadConfig(
        7, batch, bytes_per_parameter, 1.0, momentum, 1e-3, 1e-3, new_classes=2, replay=9, seed=3, steps=100
    )
    bundle = head_bundle(75)
    values, labels = lesson(75, 7, 300)
    host = HostDevice(bundle, "16KiB", head=head)
    on = replace(board("nucleo-f446re"), core=core)
    with Simulator(bundle, board=on, budget="16KiB", head=head) as device:
        for number, (x, y) in enumerate(zip(values, labels, strict=True)):
            assert device.learn_features(x, int(y)) == host.learn_features(x, int(y))
            if number % 50 == 48:
                device.flush()
                host.flush()
        assert device.head().tobytes() == host.head().tobytes()
        assert np.abs(host.head()).max() > 0.1
        for x in values[:5]:
            assert device.predict_features(x) == host.predict_features(x)


@pytest.mark.parametrize("core", sorted(set(MOST) & set(EMULATED)))
@pytest.mark.parametrize(("bytes_per_parameter", "batch"), list(product((12, 8, 4, 2), (4, 1))))
def test_a_sample_takes_no_more_instructions_than_promised(core, bytes_per_parameter, batch):
    """On average over 800 samples: the first steps, which scale the weights, take more."""
    head = recipe(5, bytes_per_parameter, batch)
    values, labels = lesson(512, 5, 800)
    bundle = head_bundle(512, Centering.of(values))
    on = replace(board("nucleo-f446re"), core=core)
    with Simulator(bundle, board=on, budget="64KiB", head=head) as device:
        for x, y in zip(values, labels, strict=True):
            device.learn_features(x, int(y))
        assert device.ticks["learn"].summary()["mean"] <= MOST[core]
