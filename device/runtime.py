"""The C runtime in this process: the sources that go onto the board, compiled for the host, called by ctypes."""

from __future__ import annotations

import ctypes as c
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from entropi.device.budget import plan_head
from entropi.device.bundle import Bundle
from entropi.device.library import (
    OBSERVER,
    CNeed,
    CSelf,
    c_head,
    describe,
    library,
    raise_for,
    record_bytes,
    to_need,
)
from entropi.device.session import Device, DeviceError, HeadConfig
from entropi.device.store import FileStore, MemoryStore
from entropi.device.units import parse_bytes

SHARE = 32  # images that a thread takes are a multiple of these: batch.c encodes so many at once


class HostDevice(Device):
    """The runtime in this process, in an arena of exactly `budget` bytes.

    `bundle` is a Bundle or its folder; `budget` bytes or text such as "48KiB". Without `head`, plan_head picks the
    best head that fits. `save` keeps the head in the file `store`, or without one as long as this object lives. Raises
    DeviceError when the image is damaged or the budget too small.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        budget: int | str,
        classes: int = 10,
        head: HeadConfig | None = None,
        store: str | Path | None = None,
    ):
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        self.info = describe(self.bundle.image)
        self._size = parse_bytes(budget)
        if head is None:
            plan = plan_head(self.bundle.image, self._size, classes)
            head, self.gave_up = plan.head, plan.gave_up
        self.head_config = head
        self._arena = (c.c_uint64 * (self._size // 8 + 1))()
        self._image = c.create_string_buffer(self.bundle.image, len(self.bundle.image))
        self._self = CSelf()
        self.reset()
        slot_bytes = record_bytes(self.need)
        self._store = FileStore(store, slot_bytes) if store else MemoryStore(slot_bytes)

    def reset(self) -> None:
        need = CNeed()
        status = library().entropi_open(
            c.byref(self._self), self._image, c.c_size_t(len(self.bundle.image)), c.byref(c_head(self.head_config)),
            self._arena, c.c_size_t(self._size), c.byref(need),
        )  # fmt: skip
        raise_for(status, need)
        self.need = to_need(need)

    def encode(self, values: np.ndarray) -> np.ndarray:
        return self._encode(values, None)

    def encode_layers(self, values: np.ndarray) -> list[np.ndarray]:
        """Run the encoder and return every layer's output, int8 [C, H, W] each."""
        layers = []

        def observe(_, pointer):
            a = pointer.contents
            flat = np.ctypeslib.as_array(a.values, ((a.channels - 1) * a.plane + (a.height - 1) * a.pitch + a.width,))
            strides = (a.plane, a.pitch, 1)
            view = np.lib.stride_tricks.as_strided(flat, (a.channels, a.height, a.width), strides)
            layers.append(view.copy())

        self._encode(values, OBSERVER(observe))
        return layers

    def encode_batch(self, values: np.ndarray, threads: int | None = None) -> np.ndarray:
        """Run the encoder on many inputs: int8 [N, C, H, W] -> int8 [N, F], each row as `encode` gives it.

        It is several times faster than `encode`, and the work is shared between `threads`, of which there are as many
        as processors by default. Raises ValueError where the inputs have another shape or threads is below 1.
        """
        shape = (self.info.channels, self.info.height, self.info.width)
        if values.ndim != 4 or values.shape[1:] != shape:
            raise ValueError(
                f"inputs of shape {list(values.shape)}; this encoder takes [N, {', '.join(map(str, shape))}]"
            )
        threads = (os.cpu_count() or 1) if threads is None else threads
        if threads < 1:
            raise ValueError(f"threads {threads} is below 1")
        values = np.ascontiguousarray(values, np.int8)
        features = np.empty((len(values), self.info.features), np.int8)
        share = -(-len(values) // (threads * SHARE)) * SHARE
        parts = [slice(at, at + share) for at in range(0, len(values), share)] if share else []
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: self._encode_part(values[part], features[part]), parts))
        return features

    def _encode_part(self, values: np.ndarray, features: np.ndarray) -> None:
        arena = np.empty(library().entropi_batch_bytes(c.byref(self._self)), np.uint8)
        status = library().entropi_encode_batch(
            c.byref(self._self), values.ctypes.data_as(c.c_void_p), c.c_size_t(len(values)),
            features.ctypes.data_as(c.c_void_p), arena.ctypes.data_as(c.c_void_p), c.c_size_t(arena.size),
        )  # fmt: skip
        raise_for(status)

    def _encode(self, values: np.ndarray, observer) -> np.ndarray:
        values = np.ascontiguousarray(values, np.int8)
        features = np.empty(self.info.features, np.int8)
        status = library().entropi_encode_observed(
            c.byref(self._self), values.ctypes.data_as(c.c_void_p), c.c_size_t(values.size),
            features.ctypes.data_as(c.c_void_p), c.c_size_t(features.size), observer or c.c_void_p(), None,
        )  # fmt: skip
        raise_for(status)
        return features

    def learn_features(self, features: np.ndarray, label: int) -> float:
        if not 0 <= label < self.head_config.classes:
            raise DeviceError(
                f"E_ARGUMENT: label {label} is not below {self.head_config.classes} classes", "E_ARGUMENT"
            )
        loss = c.c_float()
        features = np.ascontiguousarray(features, np.int8)
        status = library().entropi_learn(
            c.byref(self._self), features.ctypes.data_as(c.c_void_p), c.c_size_t(features.size), c.c_uint16(label),
            c.byref(loss),
        )  # fmt: skip
        raise_for(status)
        return loss.value

    def predict_features(self, features: np.ndarray) -> tuple[int, float]:
        label, score = c.c_uint16(), c.c_float()
        features = np.ascontiguousarray(features, np.int8)
        status = library().entropi_predict(
            c.byref(self._self), features.ctypes.data_as(c.c_void_p), c.c_size_t(features.size), c.byref(label),
            c.byref(score),
        )  # fmt: skip
        raise_for(status)
        return label.value, score.value

    def flush(self) -> None:
        raise_for(library().entropi_flush(c.byref(self._self)))

    def head(self) -> np.ndarray:
        parameters = np.empty(self.head_config.classes * (self.info.features + 1), np.float32)
        pointer = parameters.ctypes.data_as(c.c_void_p)
        raise_for(library().entropi_head(c.byref(self._self), c.c_size_t(0), c.c_size_t(parameters.size), pointer))
        return parameters

    def save(self) -> None:
        with self._store.open(record_bytes(self.need)) as store:
            raise_for(library().entropi_save(c.byref(self._self), c.byref(store)))

    def restore(self) -> None:
        with self._store.open() as store:
            raise_for(library().entropi_restore(c.byref(self._self), c.byref(store)))

    def footprint(self) -> dict:
        return {"device": "host", "arena": asdict(self.need), "image_bytes": len(self.bundle.image)}

    def close(self) -> None:
        """Nothing to give back: the arena is this object's memory."""
