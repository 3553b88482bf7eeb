"""folder:PATH, images in class folders: [split/][domain/]class/image, the levels told from the tree itself.

A first level of train, val and test is a split; any other level above the classes is domains, as in PACS and VLCS."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from entropi.host.data.samples import Samples, split_called

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
LEVELS = "[train, val or test/][domain/]class/image"
DEEPEST = 3
LARGEST = 8 << 30  # bytes
CHUNK = 32

T, R = TypeVar("T"), TypeVar("R")

# From a folder's place below the root to the names of the images in it. Only folders without folders.
Tree = dict[tuple[str, ...], list[str]]


def read(root: Path) -> Samples:
    """The samples in the tree, none of them decoded. Raises ValueError naming the folder that does not fit in."""
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give one that holds {LEVELS}")
    tree = _walk(root)
    split, domain = _levels(root, tree)
    if split:
        _check_splits(root, tree)
    if domain:
        _check_domains(root, tree)
    places = [place for place, names in tree.items() for _ in names]
    paths = [root.joinpath(*place, name) for place, names in tree.items() for name in names]
    classes = sorted({place[-1] for place in tree})
    number = {name: label for label, name in enumerate(classes)}
    return Samples(
        tuple(classes),
        np.array([number[place[-1]] for place in places], np.int64),
        lambda indices, size: decode([paths[i] for i in indices], size),
        np.array([split_called(place[0]) for place in places]) if split else None,
        np.array([place[-2] for place in places]) if domain else None,
    ).mixed()


def decode(paths: list[Path], size: int | None) -> np.ndarray:
    """RGB uint8 (N, 3, H, W), resized to size x size where that is given: bilinear, antialiased, aspect not kept.

    As in torchvision, an orientation noted in EXIF is not applied. Raises ValueError naming the first file that is no
    8-bit image, or whose size differs from the first one's."""
    width, height = (size, size) if size else _common_size(paths, _on_all_cores(_size, paths))
    images = np.empty((len(paths), 3, height, width), np.uint8)

    def fill(index: int) -> None:
        with _opened(paths[index]) as image:
            pixels = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
            images[index] = np.asarray(pixels).transpose(2, 0, 1)

    _on_all_cores(fill, range(len(paths)))
    return images


def _walk(root: Path) -> Tree:
    """The tree, sorted by name; hidden folders and files that are no images are left out."""

    def unreadable(error: OSError) -> None:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror}); change its permissions") from error

    tree: Tree = {}
    for folder, below, files in os.walk(root, onerror=unreadable, followlinks=True):
        place = Path(folder).relative_to(root).parts
        below[:] = sorted(name for name in below if not name.startswith("."))
        images = sorted(name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        if images and below:
            raise ValueError(f"{folder} holds images, such as {images[0]}, and folders; move one of the two away")
        if len(place) > DEEPEST:
            raise ValueError(f"{folder} lies too deep; {root} may hold {LEVELS}")
        if not below:
            tree[place] = images
    return tree


def _levels(root: Path, tree: Tree) -> tuple[bool, bool]:
    """Whether there is a level of splits, and one of domains."""
    filled = {len(place): root.joinpath(*place, names[0]) for place, names in tree.items() if names}
    if not filled:
        raise ValueError(f"{root} holds no images ({', '.join(SUFFIXES)}); give a folder that holds {LEVELS}")
    if 0 in filled:
        raise ValueError(f"{root} holds images and no class folders; put the images of each class into a folder of it")
    if len(filled) > 1:
        depth, other = sorted(filled)[:2]
        raise ValueError(
            f"{filled[depth]} lies {depth} deep and {filled[other]} {other}; all of {root} must be {LEVELS}"
        )
    depth = next(iter(filled))
    for place in tree:
        if len(place) != depth:
            raise ValueError(f"{root.joinpath(*place)} holds no images; remove it")
    if all(split_called(place[-1]) for place in tree):
        place = next(iter(tree))
        raise ValueError(f"{root.joinpath(*place)} stands where the classes belong; {root} may hold {LEVELS}")
    if depth == 1:
        return False, False
    tops = sorted({place[0] for place in tree})
    splits = [top for top in tops if split_called(top)]
    others = [top for top in tops if top not in splits]
    if splits and others:
        raise ValueError(f"{root / splits[0]} is a split and {root / others[0]} is none; keep to train, val and test")
    if depth == DEEPEST and others:
        raise ValueError(f"{root / others[0]} stands where train, val or test belongs; {root} may hold {LEVELS}")
    return bool(splits), depth == DEEPEST or not splits


def _classes_below(tree: Tree, level: int) -> dict[str, set[str]]:
    """The classes in each of the folders at that level."""
    classes = defaultdict(set)
    for place in tree:
        classes[place[level]].add(place[-1])
    return classes


def _check_splits(root: Path, tree: Tree) -> None:
    (first, expected), *rest = _classes_below(tree, 0).items()
    for other, classes in rest:
        for name in sorted(classes ^ expected):
            has, lacks = (first, other) if name in expected else (other, first)
            raise ValueError(f"{root / has} has class {name!r} and {root / lacks} has not; give both the same classes")


def _check_domains(root: Path, tree: Tree) -> None:
    below = _classes_below(tree, -2)
    for domain, classes in below.items():
        others = [name for other in below if other != domain for name in below[other]]
        if others and not classes & set(others):
            raise ValueError(
                f"{root}: {domain!r} shares no class with the folders beside it ({min(classes)!r} is only in it, "
                f"{min(others)!r} only there), so they are no domains; bring all class folders to one level"
            )


def _common_size(paths: list[Path], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    width, height = sizes[0]
    for path, size in zip(paths, sizes, strict=True):
        if size != sizes[0]:
            raise ValueError(
                f"{path} has {size[0]}x{size[1]} pixels and {paths[0]} {width}x{height}; "
                "give a size for all, such as size=32"
            )
    if 3 * width * height * len(paths) > LARGEST:
        raise ValueError(
            f"{len(paths)} images of {width}x{height} pixels take {3 * width * height * len(paths)} bytes, more than "
            f"{LARGEST}; give a smaller size, such as size=32"
        )
    return width, height


def _on_all_cores(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """The function of every item, in order. Threads get CHUNK items at once: small images are quicker than a task."""
    chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [result for results in pool.map(lambda chunk: [*map(function, chunk)], chunks) for result in results]


def _size(path: Path) -> tuple[int, int]:
    """(width, height), from the file's header."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"more than 8 bits a channel, mode {image.mode}")
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that can be read; replace or remove it") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on a damaged file
        raise ValueError(f"{path} cannot be read ({error}); replace or remove it") from error
