"""A bundle: the folder that entropi-export writes for one encoder."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IMAGE = "encoder.entropi"
REPORT = "report.json"
GOLDEN = "golden.npz"


class BundleError(ValueError):
    """The folder is no bundle, or part of it is missing or damaged."""


@dataclass(frozen=True)
class Preprocessing:
    """From uint8 pixels to the encoder's int8 input: ((pixel / 255 - mean) / std) / scale + zero_point, rounded half
    up and clipped. mean and std hold one value a channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    zero_point: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """images is uint8 (..., C, H, W); the result is int8 of the same shape."""
        levels = np.arange(256) / 255.0
        tables = [(levels - m) / s / self.scale + self.zero_point for m, s in zip(self.mean, self.std, strict=True)]
        tables = np.floor(np.clip(tables, -128, 127) + 0.5).clip(-128, 127).astype(np.int8)
        channels = np.moveaxis(images, -3, 0)
        return np.stack([t[c] for t, c in zip(tables, channels, strict=True)], axis=-3)


@dataclass(frozen=True)
class Bundle:
    """One exported encoder: `image` is the device image, `report` what the export measured."""

    folder: Path
    image: bytes
    report: dict
    preprocessing: Preprocessing

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Read a bundle. Raises BundleError naming the file that is missing or malformed."""
        folder = Path(folder)
        for name in (IMAGE, REPORT, GOLDEN):
            if not (folder / name).is_file():
                raise BundleError(f"{folder / name} is missing; make the folder with entropi-export --out {folder}")
        try:
            report = json.loads((folder / REPORT).read_bytes())
            p = report["preprocessing"]
            preprocessing = Preprocessing(tuple(p["mean"]), tuple(p["std"]), p["scale"], p["zero_point"])
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{folder / REPORT} is damaged ({error!r}); export again") from error
        return cls(folder, (folder / IMAGE).read_bytes(), report, preprocessing)

    @property
    def image_crc32(self) -> str:
        """The CRC-32 that ends the image, in hexadecimal; it tells images apart."""
        return self.image[:-5:-1].hex()

    def golden(self) -> dict[str, np.ndarray]:
        """Golden vectors: `input` int8 [N, C, H, W], `layer_00` ... int8 [N, c, h, w], `features` int8 [N, F].

        Raises BundleError where they cannot be read."""
        try:
            with np.load(self.folder / GOLDEN, allow_pickle=False) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{self.folder / GOLDEN} is damaged ({error}); export again") from error
