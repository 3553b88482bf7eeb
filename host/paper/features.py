"""Features of every rung on the images of several tasks, each image encoded once and kept on the disk.

The studies look at the same features again and again: under every estimator, head and few-shot draw, and an image that
several tasks share (PACS pooled and with each domain held out) is one image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from entropi.device.files import write_atomically
from entropi.host.data import Split
from entropi.host.networks.inference import output_batches
from entropi.host.progress import Progress
from entropi.host.training.ladder import Rung


class FeatureStore:
    """Features of the distinct images of `splits`, in a folder, one file a rung.

    The name of a file holds the digests of its network and of the images, so a file of other ones is never taken."""

    def __init__(self, folder: str | Path, splits: Iterable[Split]) -> None:
        self.folder = Path(folder)
        rows: dict[bytes, int] = {}
        images = []
        for split in splits:
            for image, digest in zip(split.images, _digests(split), strict=True):
                if digest not in rows:
                    rows[digest] = len(images)
                    images.append(image)
        if not images:
            raise ValueError("there are no images to encode; give at least one target")
        self._rows = rows
        self._images = Split(np.stack(images), np.zeros(len(images), np.int64))
        self._digest = hashlib.blake2b(b"".join(rows), digest_size=6).hexdigest()

    def __len__(self) -> int:
        return len(self._images)

    def file(self, rung: Rung) -> Path:
        """Where the features of a rung are, or will be."""
        return self.folder / f"{rung.name}-{rung.metadata['sha256'][:12]}-{self._digest}.npy"

    def encode(self, rung: Rung, progress: Progress | None = None) -> None:
        """Encode every image with this rung, unless its file is there. `progress` gets (images done, in all, text)."""
        if self.file(rung).exists():
            return
        chunks = []
        for chunk in output_batches(rung.encoder(), self._images):
            chunks.append(chunk)
            if progress:
                progress(sum(map(len, chunks)), len(self), f"encoding with {rung.name}")
        content = io.BytesIO()
        np.save(content, np.concatenate(chunks), allow_pickle=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.file(rung), content.getvalue())

    def __call__(self, rung: Rung, split: Split) -> np.ndarray:
        """float32 (N, F): what the encoder of `rung` returns for the images of `split`, which must be among those the
        store was made for."""
        self.encode(rung)
        rows = [self._rows[digest] for digest in _digests(split)]
        return np.load(self.file(rung), allow_pickle=False, mmap_mode="r")[rows]


def _digests(split: Split) -> list[bytes]:
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in split.images]
