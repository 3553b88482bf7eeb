import numpy as np
import pytest

from entropi.host import data

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 6, 8, 3), np.uint8)
NAMES = np.array(["dog", "cat", "eel"] * 20)
SPLIT = np.array((["train"] * 9 + ["val"] * 3 + ["test"] * 3) * 4)
DOMAIN = np.array(["photo"] * 30 + ["sketch"] * 30)


@pytest.fixture
def load(tmp_path):
    """Save the arrays and load them, with options."""

    def save_and_load(options="", save=np.savez, **arrays):
        path = tmp_path / "set.npz"
        save(path, **arrays)
        return data.load(f"npz:{path}{options}")

    return save_and_load


def pairs(split):
    return sorted((image.tobytes(), label) for image, label in split)


def expected(mask, labels, images=IMAGES):
    chosen = images.transpose(0, 3, 1, 2)[mask]
    return sorted((image.tobytes(), int(label)) for image, label in zip(chosen, labels[mask], strict=True))


def test_images_with_names_split_and_domain(load):
    found = load(images=IMAGES, **{"class": NAMES}, split=SPLIT, domain=DOMAIN, original=np.array([{}], object))
    labels = np.unique(NAMES, return_inverse=True)[1]
    assert found.classes == ("cat", "dog", "eel") and found.input_shape == (3, 6, 8)
    assert pairs(found.train) == expected(SPLIT == "train", labels)
    assert pairs(found.test) == expected(SPLIT == "test", labels)
    assert sorted(found.train.labels[:6].tolist()) == [0, 0, 1, 1, 2, 2]
    sketch = load(",domain=sketch", images=IMAGES, **{"class": NAMES}, split=SPLIT, domain=DOMAIN)
    assert pairs(sketch.train) == expected((SPLIT == "train") & (DOMAIN == "sketch"), labels)
    held = load(",hold-out=sketch", images=IMAGES, **{"class": NAMES}, split=SPLIT, domain=DOMAIN)
    assert pairs(held.train) == expected(DOMAIN == "photo", labels)
    assert pairs(held.test) == expected(DOMAIN == "sketch", labels)


def test_every_layout_gives_the_same(load):
    grey = IMAGES[..., :1]
    first = load(images=np.repeat(grey, 3, 3), labels=NAMES)
    layouts = np.repeat(grey, 3, 3).transpose(0, 3, 1, 2), grey[..., 0], np.asfortranarray(grey[..., 0])
    for images in layouts:
        found = load(images=images, labels=NAMES, save=np.savez_compressed)
        assert found.fingerprint() == first.fingerprint()
    assert load(",size=5", images=grey[..., 0], labels=NAMES).input_shape == (3, 5, 5)


def test_integer_labels(load):
    numbers = np.array([20, 3, 100] * 20, np.uint8)
    found = load(images=IMAGES, labels=numbers)
    assert found.classes == ("3", "20", "100") and found.train.labels[:3].tolist() == [0, 1, 2]
    found = load(images=IMAGES, labels=numbers // 3 % 2, classes=np.array(["zebra", "ant"]))
    assert found.classes == ("zebra", "ant") and np.bincount(found.train.labels).tolist() == [16, 32]


def test_same_spec_same_data(load):
    arrays = {"images": IMAGES, "labels": NAMES, "domain": DOMAIN}
    first, again = (load(",seed=2,test=0.3,per-class=4", **arrays) for _ in range(2))
    assert first.fingerprint() == again.fingerprint() and first.name == again.name
    assert first.name.endswith(".npz,test=0.3,seed=2,per-class=4")
    assert first.fingerprint() != load(",seed=3,test=0.3,per-class=4", **arrays).fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES.astype(float)}, r"images are float64 \(60, 6, 8, 3\); they must be uint8"),
        ({"images": IMAGES[..., :2]}, r"images are uint8 \(60, 6, 8, 2\)"),
        ({"images": IMAGES[:0]}, r"images are uint8 \(0, 6"),
        ({"images": IMAGES[:, :3]}, r"may be \(N, 3, H, W\) or \(N, H, W, 3\)"),
        ({"images": IMAGES[:59]}, r"labels is of shape \(60,\) and there are 59 images"),
        ({"labels": NAMES[:, None]}, r"labels is of shape \(60, 1\)"),
        ({"labels": np.zeros(60)}, "labels is float64; it must be integers or strings"),
        ({"labels": NAMES.astype(object)}, "array labels cannot be read .*strings as dtype str"),
        ({"labels": np.zeros(60, int), "classes": np.array([], str)}, "labels go from 0 to 0; 0 classes"),
        ({"labels": np.full(60, 2), "classes": np.array(["a", "b"])}, "go from 2 to 2; 2 classes need 0 to 1"),
        ({"labels": np.zeros(60, int), "classes": np.array(["a", "a"])}, "classes are <U1"),
        ({"labels": np.zeros(60, int), "classes": np.array(["a", "b"])}, "class 'b' has 0 training images"),
        ({"class": NAMES}, "it needs images and one of labels and class"),
        ({"split": np.array(["train", "dev"] * 30)}, "split has 'dev'; choose from train, val, test"),
        ({"split": SPLIT[1:]}, r"split is of shape \(59,\)"),
        ({"domain": np.arange(60)}, "domain is int64; it must be strings"),
    ],
)
def test_wrong_arrays(load, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(**({"images": IMAGES, "labels": NAMES} | change))
    assert "\n" not in str(caught.value)


def test_missing_arrays(load):
    with pytest.raises(ValueError, match="holds images, y; it needs images and one of labels and class"):
        load(images=IMAGES, y=NAMES)
    with pytest.raises(ValueError, match="holds nothing"):
        load()


def test_labels_are_checked_before_images_are_read(tmp_path):
    """One bit of the images is wrong, so that reading them fails."""
    path = tmp_path / "set.npz"
    np.savez(path, labels=NAMES, images=IMAGES)
    content = bytearray(path.read_bytes())
    content[content.index(IMAGES[30].tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="class 'cat' has 16 training images and needs 17"):
        data.load(f"npz:{path},per-class=17")
    with pytest.raises(ValueError, match="array images cannot be read .*Bad CRC"):
        data.load(f"npz:{path}")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", b"text", b"\x80\x04N."])
def test_other_files(tmp_path, content):
    path = tmp_path / "set.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"set\.npz is no \.npz file; give one that numpy\.savez wrote"):
        data.load(f"npz:{path}")


def test_single_arrays_and_missing_files(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    with pytest.raises(ValueError, match=r"images\.npy is a single array"):
        data.load(f"npz:{tmp_path / 'images.npy'}")
    with pytest.raises(ValueError, match="nowhere.npz is no file"):
        data.load("npz:nowhere.npz")
