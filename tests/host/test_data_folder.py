import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from entropi.host import data
from entropi.host.data import folder

PACS = {
    f"{split}/{domain}/{name}": count
    for split, count in (("train", 4), ("val", 2))
    for domain in ("photo", "sketch")
    for name in ("dog", "cat")
}


def grow(root, tree, suffix="png", size=(5, 4)):
    """Save random images: `tree` says how many in which folder. Returns (folder, pixels) of every image."""
    rng = np.random.default_rng(0)
    images = []
    for place, count in tree.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(root / place / f"{len(images):04d}.{suffix}")
            images.append((Path(place).parts, pixels))
    return images


def pairs(split):
    return sorted((image.tobytes(), label) for image, label in split)


def expected(images, classes, wanted):
    return sorted((p.transpose(2, 0, 1).tobytes(), classes.index(place[-1])) for place, p in images if wanted(place))


def test_split_domain_class(tmp_path):
    images = grow(tmp_path, PACS)
    found = data.load(f"folder:{tmp_path}")
    assert found.classes == ("cat", "dog") and found.input_shape == (3, 4, 5)
    assert pairs(found.train) == expected(images, found.classes, lambda place: place[0] == "train")
    assert pairs(found.test) == expected(images, found.classes, lambda place: place[0] == "val")
    assert found.train.labels.tolist() == [0, 1] * 8
    held = data.load(f"folder:{tmp_path},hold-out=sketch")
    assert pairs(held.train) == expected(images, found.classes, lambda place: place[1] == "photo")
    assert pairs(held.test) == expected(images, found.classes, lambda place: place[1] == "sketch")


def test_domain_class_and_the_folder_of_one_domain(tmp_path):
    images = grow(tmp_path, {"photo/dog": 5, "photo/cat": 5, "sketch/dog": 5, "sketch/cat": 10})
    found = data.load(f"folder:{tmp_path},domain=sketch")
    sketch = data.load(f"folder:{tmp_path}/sketch")
    for part in (found, sketch):
        assert (len(part.train), len(part.test)) == (12, 3)
        both = sorted(pairs(part.train) + pairs(part.test))
        assert both == expected(images, found.classes, lambda place: place[0] == "sketch")
    with pytest.raises(ValueError, match="domain 'art' is not there; choose from photo, sketch"):
        data.load(f"folder:{tmp_path},hold-out=art")
    with pytest.raises(ValueError, match="the data has no domains"):
        data.load(f"folder:{tmp_path}/sketch,domain=sketch")


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("train", "valid")])
def test_split_class(tmp_path, names):
    grow(tmp_path, {f"{names[0]}/dog": 3, f"{names[0]}/cat": 2, f"{names[1]}/dog": 2, f"{names[1]}/cat": 0})
    found = data.load(f"folder:{tmp_path}")
    assert found.train.labels.tolist() == [0, 1, 0, 1, 1] and found.test.labels.tolist() == [1, 1]


def test_folder_and_npz_of_the_same_images_are_the_same_data(tmp_path):
    images = grow(tmp_path / "tree", PACS)
    columns = {name: np.array([place[i] for place, _ in images]) for i, name in enumerate(("split", "domain", "class"))}
    np.savez(tmp_path / "set.npz", images=np.stack([pixels for _, pixels in images]), **columns)
    for options in ("", ",size=3", ",domain=photo,per-class=2,seed=5", ",hold-out=photo,size=9"):
        first, second = (
            data.load(f"folder:{tmp_path / 'tree'}{options}"),
            data.load(f"npz:{tmp_path / 'set.npz'}{options}"),
        )
        assert first.fingerprint() == second.fingerprint() == data.load(first.name).fingerprint()


def test_every_format_becomes_rgb(tmp_path):
    grey = Image.linear_gradient("L").resize((8, 8))
    coloured = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    saved = {
        "a.PNG": coloured, "b.webp": coloured, "c.bmp": coloured, "d.ppm": coloured, "e.tiff": coloured,
        "f.png": coloured.convert("RGBA"), "g.jpeg": coloured, "h.png": grey, "i.png": coloured.quantize(),
        "j.gif": grey,
    }  # fmt: skip
    for name, image in saved.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    found = folder.decode(sorted(tmp_path.iterdir()), None)
    pixels = np.asarray(coloured).transpose(2, 0, 1)
    assert all((found[i] == pixels).all() for i in range(6))
    assert np.abs(found[6].astype(int) - pixels).mean() < 25
    assert (found[7] == np.asarray(grey)).all() and (found[9] == np.asarray(grey)).all()


def test_other_files_and_hidden_ones_are_left_out(tmp_path):
    grow(tmp_path, {"dog": 5, "cat": 5, ".thumbnails/dog": 2})
    (tmp_path / "dog" / "list.txt").write_text("")
    (tmp_path / "dog" / ".hidden.png").write_text("")
    (tmp_path / "README").write_text("")
    assert len(data.load(f"folder:{tmp_path}").train) == 8


def test_images_of_several_sizes(tmp_path):
    grow(tmp_path, {"cat": 5, "dog": 5})
    Image.new("RGB", (9, 3)).save(tmp_path / "dog" / "0007.png")
    with pytest.raises(
        ValueError, match=r"dog/0007\.png has 9x3 pixels and .*png 5x4; give a size for all, such as size=32"
    ):
        data.load(f"folder:{tmp_path}")
    assert data.load(f"folder:{tmp_path},size=7").input_shape == (3, 7, 7)


def test_images_that_would_fill_the_memory(tmp_path):
    Image.new("1", (8000, 8000)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="50 images of 8000x8000 pixels take 9600000000 bytes, more than"):
        folder.decode([tmp_path / "a.png"] * 50, None)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "holds no images"),
        ({"cat": 0, "dog": 0}, "holds no images"),
        ({".": 2}, "holds images and no class folders"),
        ({"cat": 2, "dog": 2, "cat/white": 2}, "cat holds images, such as 0000.png, and folders"),
        ({"photo/cat": 2, "dog": 2}, r"dog/0002.png lies 1 deep and .*photo/cat/0000.png 2; all of .* must be"),
        ({"cat": 2, "dog": 0}, "class 'dog' has 0 training images"),
        ({"photo/cat": 2, "photo/dog": 2, "notes": 0}, "notes holds no images; remove it"),
        ({"a/b/c/d": 1}, "a/b/c/d lies too deep"),
        ({"train": 2, "test": 2}, "test stands where the classes belong"),
        ({"cat/train": 2, "cat/test": 2}, "cat/test stands where the classes belong"),
        ({"train/cat": 2, "extra/cat": 2}, "train is a split and .*extra is none; keep to train, val and test"),
        ({"photo/train/cat": 2, "photo/test/cat": 2}, "photo stands where train, val or test belongs"),
        ({"train/cat": 2, "train/dog": 2, "test/cat": 2}, r"train has class 'dog' and .*test has not"),
        ({"train/cat": 2, "test/cat": 2, "test/dog": 2}, r"test has class 'dog' and .*train has not"),
        ({"train/cat": 2, "train/dog": 0, "test/cat": 2, "test/dog": 1}, "class 'dog' has 0 training images"),
        ({"train/cat": 2}, "train is all there is"),
        (
            {"pets/cat": 2, "pets/dog": 2, "birds/owl": 2},
            "'birds' shares no class .*'owl' is only in it, 'cat' only there",
        ),
    ],
)
def test_trees_that_are_no_data_set(tmp_path, tree, message):
    grow(tmp_path, tree)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")  # so that whoever looks into an image fails
    with pytest.raises(ValueError, match=message) as caught:
        data.load(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_wrong_paths(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "nowhere"):
        with pytest.raises(ValueError, match=f"{name} is no folder; give one that holds"):
            data.load(f"folder:{tmp_path / name}")


def test_unreadable_images_are_named(tmp_path):
    grow(tmp_path, {"cat": 5, "dog": 5})
    victim = tmp_path / "cat" / "0003.png"
    whole = victim.read_bytes()
    for content, message in (
        (b"", "is no image that can be read"),
        (b"text", "is no image that can be read"),
        (whole[:60], "cannot be read .*truncated"),
    ):
        victim.write_bytes(content)
        for options in ("", ",size=4"):
            with pytest.raises(ValueError, match=rf"cat/0003\.png {message}.*; replace or remove it"):
                data.load(f"folder:{tmp_path}{options}")
    Image.fromarray(np.full((4, 5), 40000, np.uint16)).save(victim)
    with pytest.raises(ValueError, match=r"0003.png cannot be read \(more than 8 bits a channel, mode I;16\)"):
        data.load(f"folder:{tmp_path}")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """The same image in several formats, and a folder to damage them in."""
    scratch = tmp_path_factory.mktemp("damaged")
    images = {}
    for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff"):
        grow(scratch, {suffix: 1}, suffix, size=(12, 12))
        images[suffix] = next((scratch / suffix).iterdir()).read_bytes()
    return scratch, images


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on what it still decodes
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_images_decode_or_are_named(encoded, drawn):
    scratch, images = encoded
    suffix = drawn.draw(st.sampled_from(sorted(images)))
    content = bytearray(images[suffix])
    for _ in range(drawn.draw(st.integers(1, 4))):
        content[drawn.draw(st.integers(0, len(content) - 1))] = drawn.draw(st.integers(0, 255))
    path = scratch / f"x.{suffix}"
    path.write_bytes(content[: drawn.draw(st.integers(0, len(content)))])
    try:
        assert folder.decode([path], 8).shape == (1, 3, 8, 8)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)


def test_pacs_as_domainbed_divides_it(tmp_path):
    """9,991 images in 7 classes and 4 domains, 3,929 of them sketches (Li et al. 2017)."""
    sets = os.environ.get("ENTROPI_DATA")
    if not sets:
        pytest.skip("ENTROPI_DATA names no folder with unpack.py and the PACS images")
    subprocess.run([sys.executable, Path(sets) / "unpack.py", "pacs", tmp_path / "pacs.npz"], check=True)
    found = data.load(f"npz:{tmp_path / 'pacs.npz'},hold-out=sketch")
    assert found.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert (len(found.train), len(found.test)) == (6062, 3929) and found.input_shape == (3, 32, 32)
    assert np.bincount(found.test.labels).tolist() == [772, 740, 753, 608, 816, 80, 160]
