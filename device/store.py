"""Where this process keeps learned heads: in memory, or in a file of two slots that is written as flash would be."""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entropi.device.files import write_atomically
from entropi.device.library import ERASE_FUNCTION, STORE_UNIT, TRANSFER_FUNCTION, CRam, CStore, library, refusal
from entropi.device.session import DeviceError

ERASED = 0xFF


class MemoryStore:
    """Two slots of `slot_bytes` bytes in this object's memory."""

    def __init__(self, slot_bytes: int):
        self.memory = (c.c_uint8 * (2 * slot_bytes))()
        c.memset(self.memory, ERASED, 2 * slot_bytes)
        self._ram = CRam(self.memory, slot_bytes)
        self._store = library().entropi_ram_store(c.byref(self._ram))

    @contextmanager
    def open(self, room: int = 0) -> Iterator[CStore]:
        """The entropi_store, as FileStore.open gives it."""
        yield self._store


class FileStore:
    """Two slots in a file, each half of it; the first save makes it."""

    def __init__(self, path: str | Path, slot_bytes: int):
        self._path = Path(path)
        self._new_bytes = 2 * slot_bytes

    @contextmanager
    def open(self, room: int = 0) -> Iterator[CStore]:
        """The entropi_store to read, or to write a record of `room` bytes; what was written is on the disk when the
        block ends. Raises DeviceError where there is no file to read, or its slots are too small."""
        if not self._path.exists():
            if not room:
                raise refusal("E_EMPTY")
            write_atomically(self._path, bytes([ERASED]) * self._new_bytes)
        with self._path.open("r+b") as file:
            slot_bytes = file.seek(0, os.SEEK_END) // 2
            least = max(room, 2 * STORE_UNIT)
            if slot_bytes < least:
                message = f"{self._path} has slots of {slot_bytes} bytes, {least} are needed; name another file"
                raise DeviceError(f"E_ARGUMENT: {message}", "E_ARGUMENT")
            yield file_store(file, slot_bytes)
            file.flush()
            os.fsync(file.fileno())


def file_store(file, slot_bytes: int) -> CStore:
    """An entropi_store on an open binary file that holds two slots of `slot_bytes` each."""

    def erase(_, slot):
        file.seek(slot * slot_bytes)
        file.write(bytes([ERASED]) * slot_bytes)
        return 0

    def write(_, slot, offset, data, length):
        file.seek(slot * slot_bytes + offset)
        file.write(c.string_at(data, length))
        return 0

    def read(_, slot, offset, data, length):
        file.seek(slot * slot_bytes + offset)
        found = file.read(length)
        c.memmove(data, found, len(found))
        return int(len(found) != length)

    return CStore(None, slot_bytes, ERASE_FUNCTION(erase), TRANSFER_FUNCTION(write), TRANSFER_FUNCTION(read))
