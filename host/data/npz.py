"""npz:PATH, arrays that numpy.savez or savez_compressed wrote.

    images   uint8 (N, H, W, 3), (N, 3, H, W), or (N, H, W), which is grey and becomes three equal channels
    labels   or class: integers or strings (N,)
    classes  where the labels are integers, the names they index (optional)
    split    train, val or test (N,) (optional)
    domain   names (N,) (optional)

Other arrays are not looked at, and nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from entropi.host.data.samples import Samples, numbered, resized, split_called

LABELS = ("labels", "class")
DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def read(path: Path) -> Samples:
    """The samples of the file, images left in it. Raises ValueError naming the array that is not as it should be."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; give one that numpy.savez wrote")
    with _open(path) as file:
        columns = [name for name in LABELS if name in file]
        if "images" not in file or len(columns) != 1:
            raise ValueError(
                f"{path} holds {', '.join(file.files) or 'nothing'}; "
                "it needs images and one of labels and class, and may have classes, split and domain"
            )
        shape, channels_first = _images(path, file)
        classes, labels = _labels(path, file, columns[0], shape[0])
        splits = _column(path, file, "split", shape[0], "U") if "split" in file else None
        domains = _column(path, file, "domain", shape[0], "U") if "domain" in file else None

    def read_images(indices: np.ndarray, size: int | None) -> np.ndarray:
        with _open(path) as file:
            images = _array(path, file, "images")
        if len(shape) == 3:
            return np.repeat(resized(images[indices][:, None], size), 3, axis=1)
        return resized(images[indices] if channels_first else images[indices].transpose(0, 3, 1, 2), size)

    return Samples(
        classes, labels, read_images, None if splits is None else _split_names(path, splits), domains
    ).mixed()


def _images(path: Path, file: np.lib.npyio.NpzFile) -> tuple[tuple[int, ...], bool]:
    """The shape of the images, from the file's header alone, and whether channels come before height and width."""
    try:
        with file.zip.open("images.npy") as member:
            old = npy.read_magic(member) == (1, 0)
            shape, _, dtype = (npy.read_array_header_1_0 if old else npy.read_array_header_2_0)(member)
    except DAMAGE as error:
        raise _damaged(path, "images", error) from error
    first, last = (len(shape) == 4 and shape[axis] == 3 for axis in (1, 3))
    if dtype != np.uint8 or 0 in shape or not (len(shape) == 3 or first or last):
        raise ValueError(
            f"{path}: images are {dtype} {shape}; they must be uint8 (N, H, W, 3), (N, 3, H, W), or (N, H, W) for grey"
        )
    if first and last:
        raise ValueError(f"{path}: images of shape {shape} may be (N, 3, H, W) or (N, H, W, 3); crop or resize them")
    return shape, first


def _labels(path: Path, file: np.lib.npyio.NpzFile, name: str, count: int) -> tuple[tuple[str, ...], np.ndarray]:
    labels = _column(path, file, name, count, "Uiu")
    if labels.dtype.kind == "U":
        return numbered(labels)
    if "classes" not in file:
        numbers, labels = np.unique(labels, return_inverse=True)
        return tuple(map(str, numbers)), labels.astype(np.int64)
    classes = _array(path, file, "classes")
    if classes.dtype.kind != "U" or classes.ndim != 1 or len(np.unique(classes)) < len(classes):
        raise ValueError(f"{path}: classes are {classes.dtype} {classes.shape}; they must be strings (K,), each once")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"{path}: {name} go from {labels.min()} to {labels.max()}; "
            f"{len(classes)} classes need 0 to {len(classes) - 1}"
        )
    return tuple(map(str, classes)), labels.astype(np.int64)


def _split_names(path: Path, column: np.ndarray) -> np.ndarray:
    words, place = np.unique(column, return_inverse=True)
    names = [split_called(word) for word in words]
    if None in names:
        raise ValueError(f"{path}: split has {str(words[names.index(None)])!r}; choose from train, val, test")
    return np.array(names)[place]


def _column(path: Path, file: np.lib.npyio.NpzFile, name: str, count: int, kinds: str) -> np.ndarray:
    """One value for every image, of a dtype kind in `kinds`."""
    column = _array(path, file, name)
    if column.shape != (count,):
        raise ValueError(f"{path}: {name} is of shape {column.shape} and there are {count} images; give one each")
    if column.dtype.kind not in kinds:
        wanted = "strings" if kinds == "U" else "integers or strings"
        raise ValueError(f"{path}: {name} is {column.dtype}; it must be {wanted}")
    return column


def _open(path: Path) -> np.lib.npyio.NpzFile:
    try:
        file = np.load(path, allow_pickle=False)
    except DAMAGE as error:
        raise ValueError(f"{path} is no .npz file; give one that numpy.savez wrote") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"{path} is a single array; write images and labels together with numpy.savez")
    return file


def _array(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        return file[name]
    except DAMAGE as error:
        raise _damaged(path, name, error) from error


def _damaged(path: Path, name: str, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: array {name} cannot be read ({error}); write it again with numpy.savez, strings as dtype str"
    )
