"""The C runtime as a library of this process: its structures, its status codes, and what needs no arena."""

from __future__ import annotations

import ctypes as c
from dataclasses import asdict, dataclass, fields
from functools import cache

from entropi.device.session import DeviceError, HeadConfig, Need
from entropi.device.toolchain import KERNELS_SOURCE, MODES_SOURCE, RUNTIME_SOURCES, build_shared


class CInfo(c.Structure):
    _fields_ = [
        ("features", c.c_uint32),
        ("channels", c.c_uint16),
        ("height", c.c_uint16),
        ("width", c.c_uint16),
        ("layers", c.c_uint16),
        ("input_scale", c.c_float),
        ("input_zero_point", c.c_int8),
        ("stored_weights", c.c_uint32),
        ("macs", c.c_uint32),
        ("kernels", c.c_uint32),
    ]


class CHeadConfig(c.Structure):
    _fields_ = [
        ("classes", c.c_uint16),
        ("batch", c.c_uint16),
        ("bytes_per_parameter", c.c_uint16),
        ("new_classes", c.c_uint16),
        ("replay", c.c_uint16),
        ("seed", c.c_uint32),
        ("steps", c.c_uint32),
        ("learning_rate", c.c_float),
        ("momentum", c.c_float),
        ("weight_decay", c.c_float),
        ("learning_rate_decay", c.c_float),
    ]


class CNeed(c.Structure):
    _fields_ = [(f.name, c.c_uint32) for f in fields(Need)]


class CActivation(c.Structure):
    _fields_ = [
        ("values", c.POINTER(c.c_int8)),
        ("layer", c.c_uint32),
        ("channels", c.c_uint16),
        ("height", c.c_uint16),
        ("width", c.c_uint16),
        ("plane", c.c_uint32),
        ("pitch", c.c_uint32),
    ]


class CSelf(c.Structure):
    """struct entropi: two pointers, the head, nine 32-bit numbers; private, so only its size matters here."""

    _fields_ = [("pointers", c.c_void_p * 2), ("head", CHeadConfig), ("numbers", c.c_uint32 * 9)]


STORE_UNIT = 32  # ENTROPI_STORE_UNIT
TRANSFER_FUNCTION = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint32, c.c_uint32, c.c_void_p, c.c_uint32)
ERASE_FUNCTION = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_uint32)
OBSERVER = c.CFUNCTYPE(None, c.c_void_p, c.POINTER(CActivation))


class CStore(c.Structure):
    _fields_ = [
        ("context", c.c_void_p),
        ("slot_bytes", c.c_uint32),
        ("erase", ERASE_FUNCTION),
        ("write", TRANSFER_FUNCTION),
        ("read", TRANSFER_FUNCTION),
    ]


class CRam(c.Structure):
    _fields_ = [("memory", c.POINTER(c.c_uint8)), ("slot_bytes", c.c_uint32)]


@cache
def library() -> c.CDLL:
    """The runtime, compiled for this machine on first use."""
    loaded = c.CDLL(str(build_shared("runtime", RUNTIME_SOURCES)))
    loaded.entropi_status_name.restype = c.c_char_p
    loaded.entropi_ram_store.restype = CStore
    loaded.entropi_batch_bytes.restype = c.c_size_t
    return loaded


@dataclass(frozen=True)
class ImageInfo:
    """What an image holds; the fields are entropi_info's."""

    features: int
    channels: int
    height: int
    width: int
    layers: int
    input_scale: float
    input_zero_point: int
    stored_weights: int
    macs: int
    kernels: int


def refusal(status: str, need: Need | None = None) -> DeviceError:
    """The exception for a status that is not OK; E_ARENA says needed, given and missing."""
    if status == "E_ARENA" and need is not None and need.missing:
        return DeviceError(
            f"E_ARENA: needed {need.total} bytes, given {need.given}, missing {need.missing}; "
            f"raise the budget to {need.total} or lower batch, classes, replay or bytes_per_parameter",
            status,
            need,
        )
    meanings = {
        "E_ARGUMENT": "an argument is out of range",
        "E_IMAGE": "this is no entropi image, or it is damaged; export it again",
        "E_VERSION": "the image or the stored head has another format version; export, or learn and save, again with "
        "this release",
        "E_ARENA": "the arena is misaligned",
        "E_NUMERIC": "the loss or a weight leaves its range, the step was not applied; lower the learning rate",
        "E_STORE": "the store failed to erase, to write or to read back; the head saved before still stands",
        "E_EMPTY": "no head is stored; save one first",
        "E_DAMAGED": "the stored head is damaged, as by a power cut during the very first save; learn and save again",
        "E_FOREIGN": "the stored head belongs to another image, number of classes or width of weights; open the image "
        "and head that it was saved from, or learn and save again",
        "E_KERNEL": "the firmware was built for another image or head: it lacks a kernel of this image, or code for "
        "heads of so many bytes a parameter; build it again",
    }
    return DeviceError(f"{status}: {meanings.get(status, 'unknown status')}", status, need)


def to_need(need: CNeed) -> Need:
    return Need(**{name: getattr(need, name) for name, _ in CNeed._fields_})


def raise_for(status: int, need: CNeed | None = None) -> None:
    """Raise the DeviceError of a status other than OK."""
    if status:
        raise refusal(library().entropi_status_name(status).decode(), need and to_need(need))


def c_head(head: HeadConfig) -> CHeadConfig:
    """A head configuration as C has it. Raises DeviceError where a number does not fit its field."""
    limits = dict.fromkeys(("classes", "batch", "bytes_per_parameter", "new_classes", "replay"), 0xFFFF)
    for name, most in (limits | dict.fromkeys(("seed", "steps"), 0xFFFFFFFF)).items():
        value = getattr(head, name)
        if not 0 <= value <= most:
            raise DeviceError(f"E_ARGUMENT: {name} {value} is outside 0..{most}", "E_ARGUMENT")
    return CHeadConfig(**asdict(head))


def describe(image: bytes) -> ImageInfo:
    """Validate an image as the device does and say what it holds. Raises DeviceError (E_IMAGE, E_VERSION)."""
    info = CInfo()
    raise_for(library().entropi_describe(image, c.c_size_t(len(image)), c.byref(info)))
    return ImageInfo(**{name: getattr(info, name) for name, _ in CInfo._fields_})


def kernels_source(image: bytes) -> str:
    """kernels.c with those kernels alone that an image needs. Raises DeviceError (E_IMAGE, E_VERSION)."""
    needed, number, lines = describe(image).kernels, 0, []
    for line in KERNELS_SOURCE.read_text().splitlines(keepends=True):
        if " = run_" in line:
            number += 1
            if not needed >> (number - 1) & 1:
                continue
        lines.append(line)
    return "".join(lines)


def modes_source(head: HeadConfig) -> str:
    """modes.c with the memory mode alone that a head needs."""
    lines = MODES_SOURCE.read_text().splitlines(keepends=True)
    wanted = f"[MODE_OF({head.bytes_per_parameter})]"
    return "".join(line for line in lines if "[MODE_OF(" not in line or wanted in line)


def record_bytes(need: Need) -> int:
    """Bytes that a stored head takes of a slot: header, weights in whole units, CRC."""
    return STORE_UNIT * (2 + -(-need.weights // STORE_UNIT))


def measure(image: bytes, head: HeadConfig) -> Need:
    """Bytes of arena that opening `image` with `head` will want, on any device. Raises DeviceError."""
    need = CNeed()
    raise_for(library().entropi_measure(image, c.c_size_t(len(image)), c.byref(c_head(head)), c.byref(need)))
    return to_need(need)
