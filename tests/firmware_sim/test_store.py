"""A learned head in the emulated board's flash, whose power fails at any operation and any instruction."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import residual_network, write

from entropi.device import DeviceError, HeadConfig, HostDevice
from entropi.device.library import record_bytes
from entropi.firmware_sim.boards import BoardError, board
from entropi.firmware_sim.emulator import FaultError
from entropi.firmware_sim.flash import ERASE, PROGRAM, STAGES, Cut, Flash, FlashError, PowerCut
from entropi.firmware_sim.session import Simulator

HEAD = HeadConfig(2, batch=1, learning_rate=0.001)  # so slow that every step changes the head
MOMENTUM = HeadConfig(4, batch=3, bytes_per_parameter=8, learning_rate=0.05, momentum=0.9)
SMALL = {"flash_page": 128, "flash_unit": 32}


@pytest.fixture
def small(nucleo):
    """A board of small pages and large units, whose saves take few operations."""
    return replace(nucleo, **SMALL)


class Learner:
    """A session that learns random features and loses its power."""

    def __init__(self, bundle, on, head=HEAD):
        self.device = Simulator(bundle, board=on, budget="16KiB", head=head)
        self.flash = self.device.emulator.flash
        self.rng = np.random.default_rng(0)

    def learn(self, steps: int = 1) -> bytes:
        """The head after so many samples."""
        for _ in range(steps):
            features = self.rng.integers(-99, 99, self.device.info.features).astype(np.int8)
            self.device.learn_features(features, int(self.rng.integers(self.device.head_config.classes)))
        return self.head()

    def head(self) -> bytes:
        return self.device.head().tobytes()

    def restore(self) -> bytes:
        """Switch off and on, bring a head back; the head after it."""
        self.device.power_on()
        assert not any(self.head())
        self.device.restore()
        return self.head()


def test_the_board_stores_what_the_host_stores(bundle, nucleo):
    learner = Learner(bundle, nucleo, MOMENTUM)
    board, host = learner.device, HostDevice(bundle, "16KiB", head=MOMENTUM)
    with pytest.raises(DeviceError, match="E_EMPTY: no head is stored; save one first"):
        board.restore()
    rng = np.random.default_rng(3)
    for _ in range(2):
        for _ in range(4):
            features, label = rng.integers(-99, 99, 8).astype(np.int8), int(rng.integers(4))
            assert board.learn_features(features, label) == host.learn_features(features, label)
        board.save()
        host.save()
    size = record_bytes(host.need)
    firmware, content = board.firmware, board.emulator._flash.raw
    starts = (firmware.symbols["slots_start"] - nucleo.flash.origin + i * nucleo.flash_page for i in (0, 1))
    on_host = bytes(host._store.memory)
    assert [content[at : at + size] for at in starts] == [on_host[:size], on_host[size:]]
    assert learner.restore() == host.head().tobytes()
    operations = learner.flash.operations
    board.save()
    assert learner.flash.operations == operations


def test_the_slots_are_the_last_pages_and_part_of_the_footprint(bundle, nucleo):
    device = Simulator(bundle, board=nucleo, budget="16KiB", head=HEAD)
    flash = device.footprint()["flash"]
    assert flash["slots"] == device.firmware.slots == 2 * 131072
    assert flash["total"] + flash["slots"] < flash["given"]
    device.save()
    assert device.emulator.flash.erases == [0, 0, 1, 0]
    assert device.firmware.symbols["slots_end"] == nucleo.flash.origin + nucleo.flash.length


@pytest.mark.parametrize("change", [{"flash_page": 0, "flash_unit": 0}, {"flash_page": 512 * 1024}])
def test_a_board_without_room_says_so_when_it_is_asked_to_save(bundle, nucleo, change):
    device = Simulator(bundle, board=replace(nucleo, **change), budget="16KiB", head=HEAD)
    assert device.firmware.slots == 0
    for use in (device.save, device.restore):
        with pytest.raises(DeviceError, match="E_ARGUMENT: a stored head takes 160 bytes, a slot on the device has 0;"):
            use()
    assert device.predict_features(np.zeros(8, np.int8))[1] == 0.5


def test_another_image_on_the_board_is_told_apart(bundle, small):
    first = Simulator(bundle, board=small, budget="16KiB", head=HEAD)
    first.save()
    kept = bytes(first.emulator._flash.raw[-first.firmware.slots :])
    other_bundle = replace(bundle, image=write(residual_network(seed=6, channels=4, size=8)))
    for other, head, status in (
        (bundle, HEAD, ""),
        (other_bundle, HEAD, "E_FOREIGN"),
        (bundle, replace(HEAD, classes=3), "E_FOREIGN"),
    ):
        device = Simulator(other, board=small, budget="16KiB", head=head)
        half = device.firmware.slots // 2
        device.emulator._flash[-2 * half : -half] = kept[: len(kept) // 2].ljust(half, b"\xff")
        if status:
            with pytest.raises(DeviceError, match=status):
                device.restore()
        else:
            device.restore()


@pytest.mark.parametrize("unit", [8, 32])
def test_a_cut_at_any_flash_operation_leaves_the_old_head_or_the_new(bundle, small, unit):
    learner = Learner(bundle, replace(small, flash_unit=unit))
    learner.device.save()
    before = learner.flash.operations
    learner.learn()
    learner.device.save()
    operations = learner.flash.operations - before
    assert operations == 2 + 160 // unit
    outcomes = Counter()
    for operation in range(operations):
        for stage in STAGES:
            old = learner.learn()
            learner.device.save()
            new = learner.learn()
            learner.flash.cut(Cut(operation, stage, seed=operation))
            with pytest.raises(PowerCut, match=f"the power failed at flash operation .* {stage}"):
                learner.device.save()
            with pytest.raises(PowerCut):
                learner.device.predict_features(np.zeros(8, np.int8))
            found = learner.restore()
            assert found in (old, new)
            outcomes[found == new] += 1
            after = learner.learn()
            learner.device.save()
            assert learner.restore() == after
    assert outcomes[True] >= 1
    assert outcomes[False] >= 5 * (operations - 32 // unit)


def test_random_cuts_during_learning(bundle, small):
    """By flash operation or by instruction, wherever it comes. benchmarks/power_cuts.py does a thousand."""
    learner, rng = Learner(bundle, small), random.Random(2)
    start = learner.device.emulator.instructions
    kept = learner.learn()
    learner.device.save()
    round_of_learning = learner.device.emulator.instructions - start
    where = Counter()
    for cut in range(60):
        complete, trying = kept, None
        if cut % 2:
            learner.flash.cut(Cut(rng.randrange(20), rng.choice(STAGES), cut))
        else:
            learner.device.emulator.cut_power_after(rng.randrange(2 * round_of_learning))
        try:
            while True:
                trying = learner.learn()
                learner.device.save()
                complete = trying
        except PowerCut as failure:
            where["instructions" in str(failure)] += 1
        kept = learner.restore()
        assert kept in (complete, trying)
    assert where == {True: 30, False: 30}


def test_power_on_is_a_reset(bundle, small):
    """What is executed after it is what a new board executes."""
    device = Simulator(bundle, board=small, budget="16KiB", head=HEAD)
    device.power_on()
    after_open = device.emulator.instructions
    device.learn_features(np.ones(8, np.int8), 1)
    device.emulator.cut_power_after(100)
    with pytest.raises(PowerCut, match="the power failed after"):
        device.flush()
    device.power_on()
    assert device.emulator.instructions == after_open


def test_flash_is_written_by_the_controller_alone(run_c):
    last = "*(volatile uint32_t *)(uintptr_t)0x0807fffcu"
    emulator, _ = run_c(f"int main(void) {{ {last} = 1; return 0; }}")
    with pytest.raises(FaultError, match="write to flash at 0x0807fffc"):
        emulator.run()


def test_the_controller_refuses_and_carries_out(run_c):
    """Program, program again, erase off a page's start, erase, program."""
    emulator, _ = run_c(
        f"""static uint32_t command(uint32_t address, uint32_t what) {{
            volatile uint32_t *c = (volatile uint32_t *)(uintptr_t)0x5FFFF000;
            c[8] = 0x01020304;
            c[2] = address;
            c[3] = what;
            return c[4]; }}
        int main(void) {{
            const uint32_t page = 0x08060000;
            uint32_t told[8] = {{command(page, {PROGRAM}), command(page, {PROGRAM}), command(page + 4, {ERASE}),
                                 command(page, {ERASE}), command(page + 4, {PROGRAM}), command(page, 9),
                                 ((volatile uint32_t *)(uintptr_t)page)[0], ((volatile uint32_t *)(uintptr_t)page)[1]}};
            port_open();
            port_write((const uint8_t *)told, sizeof told);
            return 0; }}"""
    )
    told = np.frombuffer(emulator.receive(), "<u4").tolist()
    assert told == [0, 1, 1, 0, 0, 1, 0xFFFFFFFF, 0x01020304]
    assert emulator.flash.erases == [0, 0, 0, 1]


def test_flash_refuses_what_flash_cannot_do():
    memory = bytearray(b"\xff" * 256)
    flash = Flash(memory, page=128, unit=8)
    flash.program(8, bytes(8))
    for wrong in (
        lambda: flash.program(8, bytes(8)),
        lambda: flash.program(8, b"\xff" * 8),
        lambda: flash.program(20, bytes(8)),
        lambda: flash.program(16, bytes(4)),
        lambda: flash.program(256, bytes(8)),
        lambda: flash.erase(64),
        lambda: flash.erase(256),
        lambda: flash.erase(-128),
    ):
        with pytest.raises(FlashError):
            wrong()
    flash.program(16, b"\xff" * 8)
    with pytest.raises(FlashError, match="program at 0x10: the unit is not erased"):
        flash.program(16, bytes(8))
    flash.erase(0)
    assert memory == b"\xff" * 256
    flash.program(8, bytes(8))
    assert (flash.operations, flash.erases) == (4, [1, 0])


@given(st.sampled_from(STAGES), st.integers(0, 99), st.booleans())
def test_a_cut_operation_has_to_be_done_again_from_an_erase(stage, seed, erasing):
    memory = bytearray(b"\xff" * 128)
    flash = Flash(memory, page=128, unit=8)
    flash.program(0, bytes(8))
    flash.cut(Cut(1, stage, seed))
    flash.program(8, b"01234567")
    before = bytes(memory)
    with pytest.raises(PowerCut):
        flash.erase(0) if erasing else flash.program(16, b"01234567")
    after = b"\xff" * 128 if erasing else before[:16] + b"01234567" + before[24:]
    changed = bytes(memory)
    if stage in ("nothing", "all"):
        assert changed == (before if stage == "nothing" else after)
    if stage in ("first bytes", "some bits"):
        assert all(c & ~(b | a) == 0 and (b & a) & ~c == 0 for b, c, a in zip(before, changed, after, strict=True))
    with pytest.raises(FlashError, match="is not erased"):
        flash.program(16, bytes(8))
    flash.erase(0)
    flash.program(16, bytes(8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("page = 0x1000", "flash.unit is missing; give the bytes that one program writes, 1, 2, 4, 8, 16, 32"),
        ("unit = 4", "flash.page is missing; give the bytes of the last page, a multiple of 32"),
        ("page = 0x1000\nunit = 3", "flash.unit = 3; give the bytes that one program writes"),
        ("page = 100\nunit = 4", "flash.page = 100; give the bytes of the last page"),
        ("page = 0x3000\nunit = 4", "flash.page = 12288; flash.length must be a multiple of it"),
        ("page = 0x1000\nunit = true", "flash.unit = True; give the bytes"),
    ],
)
def test_pages_and_units_of_a_users_board(tmp_path, fields, message):
    text = 'title = "A board"\ncore = "cortex-m4f"\nclock_hz = 1\ndocument = "a data sheet"\n'
    ram = "[ram]\norigin = 0x2000_0000\nlength = 0x1_8000\n"
    path = tmp_path / "mine.toml"
    flash = "[flash]\norigin = 0x0800_0000\nlength = 0x4_0000\n"
    path.write_text(f"{text}{flash}page = 2048\nunit = 8\n{ram}")
    mine = board(path)
    assert (mine.flash_page, mine.flash_unit) == (2048, 8)
    path.write_text(f"{text}{flash}{fields}\n{ram}")
    with pytest.raises(BoardError, match=message) as error:
        board(path)
    assert "\n" not in str(error.value)
