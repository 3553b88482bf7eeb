"""A learned head that outlives the power, on flash that obeys flash's rules and loses its power anywhere."""

from __future__ import annotations

import ctypes as c
import random
import shutil
import struct
import subprocess
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropi.device import Bundle, DeviceError, HeadConfig, HostDevice, toolchain
from entropi.device.bundle import Preprocessing
from entropi.device.library import ERASE_FUNCTION, TRANSFER_FUNCTION, CRam, CStore, library, raise_for, record_bytes
from entropi.export.image import Centering, write_image
from entropi.export.integer import Network, Tensor
from entropi.firmware_sim.flash import STAGES, Cut, Flash, FlashError, PowerCut

FEATURES = 4
HEAD = HeadConfig(classes=2, batch=1, learning_rate=0.01)  # so slow that every step changes the head
ROOT = Path(__file__).resolve().parents[2]


def bundle(features: int = FEATURES, center: int = 0) -> Bundle:
    """An image without layers, whose features are its input."""
    centers = np.full(features, center, np.int8)
    image, _ = write_image(Network({0: Tensor(features, 1, 1, 1.0, 0)}, 0, 0), Centering(centers, 1 / 400))
    return Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), 1.0, 0))


class Board:
    """A device, and a store on flash of two slots whose power fails.

    ctypes swallows what callbacks raise: a power cut becomes a failure now and ever after, `call` raises all else.
    """

    def __init__(self, unit: int = 4, page: int = 64, features: int = FEATURES, **options):
        self.device = HostDevice(bundle(features), "64KiB", head=HEAD, **options)
        self.slot_bytes = -(-record_bytes(self.device.need) // page) * page
        self.memory = bytearray(b"\xff" * 2 * self.slot_bytes)
        self.flash = Flash(self.memory, page, unit)
        self.store = CStore(
            None,
            self.slot_bytes,
            ERASE_FUNCTION(self._guarded(self._erase)),
            TRANSFER_FUNCTION(self._guarded(self._write)),
            TRANSFER_FUNCTION(self._guarded(self._read)),
        )
        self.is_off = False
        self.broken: list[Exception] = []
        self.rng = np.random.default_rng(0)

    def _guarded(self, function):
        def call(_, *arguments):
            try:
                if not self.is_off:
                    function(*arguments)
            except PowerCut:
                self.is_off = True
            except (FlashError, AssertionError) as error:
                self.broken.append(error)
            return int(self.is_off)

        return call

    def _erase(self, slot):
        for at in range(0, self.slot_bytes, self.flash.page):
            self.flash.erase(slot * self.slot_bytes + at)

    def _write(self, slot, offset, data, length):
        assert offset % 32 == length % 32 == data % 8 == 0 < length
        assert offset + length <= self.slot_bytes
        content, start = c.string_at(data, length), slot * self.slot_bytes + offset
        for at in range(0, length, self.flash.unit):
            self.flash.program(start + at, content[at : at + self.flash.unit])

    def _read(self, slot, offset, data, length):
        start = slot * self.slot_bytes + offset
        c.memmove(data, bytes(self.memory[start : start + length]), length)

    def learn(self) -> bytes:
        """Take one step; the head after it."""
        self.device.learn_features(self.rng.integers(-99, 99, FEATURES).astype(np.int8), int(self.rng.integers(2)))
        return self.head()

    def head(self) -> bytes:
        return self.device.head().tobytes()

    def save(self) -> None:
        self.call(library().entropi_save)

    def restore(self) -> bytes:
        """Bring a head back; the head after it."""
        self.call(library().entropi_restore)
        return self.head()

    def call(self, function) -> None:
        status = function(c.byref(self.device._self), c.byref(self.store))
        for error in self.broken:
            raise error
        raise_for(status)

    def power_on(self) -> None:
        self.is_off = False
        self.device.reset()

    def save_with(self, cut: Cut) -> bool:
        """Whether the save was over before the power failed."""
        self.flash.cut(cut)
        try:
            self.save()
        except DeviceError:
            assert self.is_off
        finished = not self.is_off
        self.power_on()
        return finished


def slots(memory: bytearray | bytes) -> list[memoryview]:
    half = len(memory) // 2
    return [memoryview(memory)[:half], memoryview(memory)[half:]]


def mend(slot: memoryview) -> None:
    """Give a changed record its CRC."""
    end = 32 + int.from_bytes(slot[16:20], "little")
    crc_at = -(-end // 32) * 32
    slot[crc_at : crc_at + 4] = zlib.crc32(slot[:end]).to_bytes(4, "little")


def saved(count: int = 2, **options) -> tuple[Board, list[bytes]]:
    """A board after some saves, and the heads that it saved."""
    board, heads = Board(**options), []
    for _ in range(count):
        heads.append(board.learn())
        board.save()
    return board, heads


@pytest.mark.parametrize("in_file", [False, True])
def test_save_and_restore(tmp_path, in_file):
    store = tmp_path / "head" if in_file else None
    head = HeadConfig(2, batch=3, bytes_per_parameter=8, learning_rate=0.1, momentum=0.9)
    device = HostDevice(bundle(), "64KiB", head=head, store=store)
    with pytest.raises(DeviceError, match="E_EMPTY: no head is stored; save one first"):
        device.restore()
    assert list(tmp_path.iterdir()) == []
    sample = np.array([9, -7, 50, 3], np.int8)
    for label in (0, 1, 1, 0):
        device.learn_features(sample, label)
    kept = device.head()
    device.save()
    for label in (1, 1, 0, 1):
        device.learn_features(sample, label)
    assert (device.head() != kept).any()
    if in_file:
        device = HostDevice(bundle(), "64KiB", head=head, store=store)
    device.restore()
    np.testing.assert_array_equal(device.head(), kept)
    for _ in range(2):  # no batch of 3: the samples that were waiting are gone
        device.learn_features(sample, 0)
    np.testing.assert_array_equal(device.head(), kept)


def test_a_file_of_smaller_slots_is_refused(tmp_path):
    HostDevice(bundle(), "64KiB", head=HEAD, store=tmp_path / "head").save()
    larger = HostDevice(bundle(99), "64KiB", head=HEAD, store=tmp_path / "head")
    with pytest.raises(DeviceError, match="E_FOREIGN"):
        larger.restore()
    needed = record_bytes(larger.need)
    with pytest.raises(DeviceError, match=f"head has slots of 128 bytes, {needed} are needed; name another file"):
        larger.save()
    (tmp_path / "head").write_bytes(b"")
    with pytest.raises(DeviceError, match=r"head has slots of 0 bytes, 64 are needed; name another file"):
        larger.restore()


@pytest.mark.parametrize(("unit", "page"), [(1, 64), (2, 32), (4, 128), (8, 64), (16, 4096), (32, 128)])
def test_a_cut_at_any_operation_leaves_the_old_head_or_the_new(unit, page):
    board, _ = saved(unit=unit, page=page)
    before = board.flash.operations
    board.learn()
    board.save()
    operations = board.flash.operations - before
    assert operations == board.slot_bytes // page + record_bytes(board.device.need) // unit
    outcomes = Counter()
    for operation in range(operations):
        for stage in STAGES:
            old = board.learn()
            board.save()
            new = board.learn()
            assert not board.save_with(Cut(operation, stage, seed=operation))
            found = board.restore()
            assert found in (old, new)
            outcomes[found == new] += 1
            after = board.learn()
            board.save()
            board.power_on()
            assert board.restore() == after
    assert outcomes[True] >= 1
    assert outcomes[False] >= 5 * (operations - 32 // unit)


def test_a_cut_during_the_first_save_leaves_nothing_or_the_new_head():
    outcomes = Counter()
    for operation in range(Board().slot_bytes // 64 + record_bytes(Board().device.need) // 4):
        for stage in STAGES:
            board = Board()
            new = board.learn()
            assert not board.save_with(Cut(operation, stage))
            try:
                assert board.restore() == new
                outcomes["new"] += 1
            except DeviceError as error:
                assert not any(board.head())
                outcomes[error.status] += 1
            new = board.learn()
            board.save()
            board.power_on()
            assert board.restore() == new
    assert set(outcomes) == {"new", "E_EMPTY", "E_DAMAGED"}


def test_a_thousand_cuts_during_learning():
    board, (kept,) = saved(1)
    rng, finished = random.Random(1), 0
    for cut in range(1000):
        complete, trying = kept, None
        board.flash.cut(Cut(rng.randrange(300), rng.choice(STAGES), cut))
        while not board.is_off:
            for _ in range(rng.randrange(1, 4)):
                head = board.learn()
            trying = head
            try:
                board.save()
                complete, finished = trying, finished + 1
            except DeviceError:
                assert board.is_off
        board.power_on()
        kept = board.restore()
        assert kept in (complete, trying)
    assert finished > 1000


def test_each_save_takes_the_other_slot_and_an_unchanged_head_none():
    board, _ = saved(100, page=64)
    assert board.flash.erases == [50] * 4
    operations = board.flash.operations
    board.save()
    board.power_on()
    board.restore()
    board.save()
    assert board.flash.operations == operations


def test_sequence_numbers_wrap():
    board, (_, newest) = saved()
    for slot, sequence in zip(slots(board.memory), (0xFFFFFFFF, 0), strict=True):
        slot[8:12] = sequence.to_bytes(4, "little")
        mend(slot)
    assert board.restore() == newest
    after = board.learn()
    board.save()
    assert bytes(slots(board.memory)[0][8:12]) == b"\1\0\0\0"
    board.power_on()
    assert board.restore() == after


def test_every_damaged_bit_is_found_and_the_older_record_serves():
    board, (older, newest) = saved()
    whole = bytes(board.memory)
    end = record_bytes(board.device.need) - 32 + 4
    for bit in range(8 * end):
        if 32 + 40 <= bit // 8 < end - 4:
            continue  # it only fills the last unit
        board.memory[:] = whole
        slots(board.memory)[1][bit // 8] ^= 1 << bit % 8
        assert board.restore() == older
        slots(board.memory)[0][bit // 8] ^= 1 << bit % 8
        with pytest.raises(DeviceError, match="E_DAMAGED: the stored head is damaged"):
            board.restore()
        assert board.head() == older
    board.memory[:] = whole
    assert board.restore() == newest


def spoil(slot: memoryview, how: str) -> None:
    if how == "empty":
        slot[:] = b"\xff" * len(slot)
    elif how == "damaged":
        slot[40] ^= 1
    elif how == "newer":
        slot[4] = 3
        mend(slot)
    elif how == "image":
        slot[12] ^= 1
        mend(slot)
    elif how == "head":
        slot[20] ^= 1
        mend(slot)


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("empty", "empty", "E_EMPTY"), ("empty", "damaged", "E_DAMAGED"), ("damaged", "empty", "E_DAMAGED"),
        ("image", "damaged", "E_FOREIGN"), ("damaged", "head", "E_FOREIGN"), ("empty", "image", "E_FOREIGN"),
        ("newer", "empty", "E_VERSION"), ("damaged", "newer", "E_VERSION"),
    ],
)  # fmt: skip
def test_what_is_in_the_way_is_named(first, second, status):
    board, _ = saved()
    for slot, how in zip(slots(board.memory), (first, second), strict=True):
        spoil(slot, how)
    head = board.learn()
    with pytest.raises(DeviceError) as error:
        board.restore()
    assert error.value.status == status
    assert "\n" not in str(error.value)
    assert board.head() == head
    board.save()
    board.power_on()
    assert board.restore() == head


def test_a_record_of_version_1_is_told_apart():
    """It had a header of 20 bytes, and its CRC right behind the payload."""
    board = Board()
    body = struct.pack("<IHHIII", 0x44485445, 1, 2, 7, 0x12345678, 40) + bytes(40)
    board.memory[: len(body) + 4] = body + zlib.crc32(body).to_bytes(4, "little")
    with pytest.raises(DeviceError, match="E_VERSION: the image or the stored head has another format version"):
        board.restore()
    board.memory[30] = 1
    with pytest.raises(DeviceError, match="E_DAMAGED"):
        board.restore()


def test_another_image_or_number_of_classes_is_foreign(tmp_path):
    path = tmp_path / "head"
    HostDevice(bundle(), "64KiB", head=HEAD, store=path).save()
    for other, head in ((bundle(center=1), HEAD), (bundle(), HeadConfig(classes=3, batch=1))):
        with pytest.raises(DeviceError, match="E_FOREIGN: the stored head belongs to another image, number of"):
            HostDevice(other, "64KiB", head=head, store=path).restore()
    HostDevice(bundle(), "64KiB", head=HeadConfig(2, batch=9, learning_rate=0.01), store=path).restore()


def test_a_worn_cell_is_noticed_and_the_old_head_stands():
    board, (_, newest) = saved()

    def worn(slot, offset, data, length):
        Board._write(board, slot, offset, data, length)
        if offset + length == record_bytes(board.device.need):
            slots(board.memory)[slot][24] &= 0xFE

    board.store.write = TRANSFER_FUNCTION(board._guarded(worn))
    for _ in range(9):
        board.learn()
        with pytest.raises(DeviceError, match="E_STORE: the store failed"):
            board.save()
    board.power_on()
    assert board.restore() == newest


def test_a_slot_that_cannot_be_read_does_not_hide_the_other():
    """Flash with ECC refuses to read what a power cut left half written."""
    board, (older, _) = saved()

    def read(_, slot, *rest):
        if slot != unreadable:
            board._read(slot, *rest)
        return int(slot == unreadable)

    board.store.read = TRANSFER_FUNCTION(read)
    unreadable = 1
    assert board.restore() == older
    unreadable = 0
    new = board.learn()
    with pytest.raises(DeviceError, match="E_STORE"):
        board.save()  # it writes slot 0, which cannot be read back
    unreadable = -1
    assert board.restore() == new


def test_flash_that_reads_otherwise_the_second_time_leaves_a_head_of_zeros():
    board, _ = saved()

    def read(_, slot, offset, data, length):
        board._read(slot, offset, data, length)
        if length == board.device.need.weights:
            c.memset(data, 0x55, 1)
        return 0

    board.store.read = TRANSFER_FUNCTION(read)
    with pytest.raises(DeviceError, match="E_STORE"):
        board.restore()
    assert not any(board.head())


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 130), st.binary(max_size=40)), max_size=6), st.booleans())
def test_damage_never_crashes_and_never_loads_a_wrong_head(damage, mended):
    """Any bytes anywhere; mended, the CRC of a record fits them, and then no more is asked than that nothing breaks."""
    board, heads = saved()
    whole = bytes(board.memory)
    for slot, at, data in damage:
        part = slots(board.memory)[slot]
        data = data[: max(0, len(part) - at)]
        part[at : at + len(data)] = data
    intact = [head for head, now, then in zip(heads, slots(board.memory), slots(whole), strict=True) if now == then]
    if mended:
        for slot in slots(board.memory):
            if int.from_bytes(slot[16:20], "little") <= 64:
                mend(slot)
    before = board.learn()
    try:
        found = board.restore()
        assert mended or found in heads
        assert mended or not intact or found == heads[1] or found == intact[-1]
    except DeviceError as error:
        assert error.status in ("E_EMPTY", "E_DAMAGED", "E_FOREIGN", "E_VERSION")
        assert mended or not intact
        assert board.head() == before


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=512), st.binary(max_size=512))
def test_garbage_is_no_head(first, second):
    board = Board()
    for slot, data in zip(slots(board.memory), (first, second), strict=True):
        data = data[: len(slot)]
        slot[: len(data)] = data
    with pytest.raises(DeviceError, match="E_EMPTY|E_DAMAGED"):
        board.restore()
    assert not any(board.head())


def test_slots_too_small_are_refused_and_the_exact_size_is_enough():
    device = HostDevice(bundle(), "64KiB", head=HEAD)
    needed = record_bytes(device.need)
    for slot_bytes, name in ((needed - 1, "E_ARGUMENT"), (needed, "OK")):
        memory = (c.c_uint8 * (2 * slot_bytes))()
        store = library().entropi_ram_store(c.byref(CRam(memory, slot_bytes)))
        status = library().entropi_save(c.byref(device._self), c.byref(store))
        assert library().entropi_status_name(status).decode() == name
        assert any(memory) == (name == "OK")


def test_the_store_is_clean_under_sanitisers(tmp_path):
    """Records of random fields with the right CRC, in slots of exactly their size."""
    if not shutil.which("cc"):
        pytest.skip("the address sanitiser needs a system compiler named cc")
    program = tmp_path / "fuzz"
    flags = ["-std=c99", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-ffp-contract=off"]
    sources = [*toolchain.RUNTIME_SOURCES, Path(__file__).with_name("fuzz_store.c")]
    built = subprocess.run(
        ["cc", *flags, f"-I{toolchain.INCLUDE}", *sources, "-o", program], capture_output=True, text=True
    )
    if built.returncode and "sanitize" in built.stderr:
        pytest.skip("the system compiler has no address sanitiser")
    assert not built.returncode, built.stderr
    (tmp_path / "image").write_bytes(bundle().image)
    done = subprocess.run([program, tmp_path / "image", "5000"], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    restored, refused = map(int, done.stdout.split())
    assert restored > 250 and refused > 250


HAL = """
#include <stdint.h>
typedef enum { HAL_OK, HAL_ERROR } HAL_StatusTypeDef;
typedef struct { uint32_t TypeErase, Banks, Page, NbPages; } FLASH_EraseInitTypeDef;
enum { FLASH_TYPEERASE_PAGES, FLASH_BANK_2 = 2, FLASH_TYPEPROGRAM_DOUBLEWORD = 0 };
HAL_StatusTypeDef HAL_FLASH_Unlock(void), HAL_FLASH_Lock(void);
HAL_StatusTypeDef HAL_FLASHEx_Erase(FLASH_EraseInitTypeDef *erase, uint32_t *page_error);
HAL_StatusTypeDef HAL_FLASH_Program(uint32_t type, uint32_t address, uint64_t data);
"""


def test_the_documented_port_compiles(tmp_path):
    """Against the declarations of ST's library that it uses."""
    text = (ROOT / "docs" / "storage.md").read_text()
    (tmp_path / "port.c").write_text(text.split("```c\n")[1].split("```")[0])
    (tmp_path / "flash.h").write_text((ROOT / "firmware_sim" / "firmware" / "flash.h").read_text())
    (tmp_path / "stm32l4xx_hal.h").write_text(HAL)
    (tmp_path / "string.h").write_text(
        "#include <stddef.h>\nvoid *memcpy(void *to, const void *from, size_t length);\n"
    )
    toolchain.compile_object(toolchain.CORES["cortex-m4f"], tmp_path / "port.c", tmp_path)
