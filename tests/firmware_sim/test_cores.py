"""The same lesson on every core, made by every compiler: the bits are the host's."""

from dataclasses import replace

import numpy as np
import pytest
from networks import EVERY_LAYER, wrong_layers

from entropi.device.runtime import HostDevice
from entropi.device.session import HeadConfig

ARENA = 8192
HEAD = HeadConfig(4, batch=3, bytes_per_parameter=8, learning_rate=0.05, momentum=0.9, weight_decay=1e-3)


def test_features_and_learned_weights_are_the_hosts(every_layer, every_core, compiler, open_on):
    rng = np.random.default_rng(3)
    host = HostDevice(every_layer, ARENA, head=HEAD)
    with open_on(every_layer, every_core, compiler, HEAD, ARENA) as device:
        assert device.need == host.need
        for step in range(20):
            values = rng.integers(-128, 128, (3, 8, 8)).astype(np.int8)
            features = host.encode(values)
            np.testing.assert_array_equal(device.encode(values), features)
            assert device.learn_features(features, step % 4) == host.learn_features(features, step % 4)
            assert device.predict_features(features) == host.predict_features(features)
        device.flush()
        host.flush()
        assert np.count_nonzero(host.head()) > 0
        assert device.head().tobytes() == host.head().tobytes()
        assert not wrong_layers(device, EVERY_LAYER, values)


@pytest.mark.parametrize(
    ("core", "flags"),
    [
        ("cortex-m0plus", "-Os"),
        ("cortex-m0plus", "-O3"),
        ("cortex-m4f", "-O3"),
        ("cortex-m4f", "-Os -mno-unaligned-access"),
        ("cortex-m4f", "-Os -DENTROPI_NO_ASSEMBLY"),
    ],
)
def test_features_are_the_hosts_with_other_flags(every_layer, board_of, compiler, core, flags, open_on):
    level, *more = flags.split()
    changed = replace(compiler, optimisation=level, cores={core: (*compiler.cores[core], *more)})
    values = np.random.default_rng(4).integers(-128, 128, (3, 8, 8)).astype(np.int8)
    host = HostDevice(every_layer, ARENA, head=HEAD)
    with open_on(every_layer, board_of[core], changed, HEAD, ARENA) as device:
        np.testing.assert_array_equal(device.encode(values), host.encode(values))


def test_two_sessions_take_the_same_instructions(every_layer, every_core, compiler, open_on):
    def ticks() -> list[int]:
        with open_on(every_layer, every_core, compiler, HEAD, ARENA) as device:
            device.encode(np.zeros((3, 8, 8), np.int8))
            for label in range(HEAD.batch):
                device.learn_features(np.arange(device.info.features, dtype=np.int8), label)
            return [device.ticks["encode"].last, device.ticks["learn"].last, device.ticks["learn"].least]

    assert ticks() == ticks()
    assert min(ticks()) > 100
