"""Random networks on boards: every kind of layer, with weights of few bits and of many."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ADD, CONV, KINDS, MAX_POOL, opened, skipping_networks

from entropi.device.session import HeadConfig
from entropi.firmware_sim.boards import BoardError, board
from entropi.firmware_sim.qemu import check_emulated
from entropi.firmware_sim.session import Simulator


@pytest.mark.parametrize("name", ["raspberry-pi-pico", "nucleo-f446re", "corstone-300"])
@settings(max_examples=30, deadline=None)  # the compiler and an emulator run in each
@given(network=skipping_networks((*KINDS, CONV, CONV, MAX_POOL, ADD)), optimize=st.sampled_from(["size", "speed"]))
def test_a_network_is_the_hosts(name, network, optimize):
    try:
        check_emulated(board(name))
    except BoardError as error:
        pytest.skip(str(error))
    host = opened(network, optimize)
    values = np.random.default_rng(0).integers(-128, 128, network.tensors[0].shape).astype(np.int8)
    with Simulator(host.bundle, name, 1 << 16, head=HeadConfig(3, batch=2)) as device:
        np.testing.assert_array_equal(device.encode(values), host.encode(values))
