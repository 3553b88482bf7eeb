import numpy as np
import pytest

from entropi.host import data
from entropi.host.data import Split


def split(labels):
    labels = np.asarray(labels, np.int64)
    return Split(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], labels)


def test_iterates_over_pairs():
    assert [(int(image[0, 0, 0]), label) for image, label in split([2, 0, 1])] == [(0, 2), (1, 0), (2, 1)]


def test_rejects_arrays_of_another_kind():
    with pytest.raises(ValueError, match="float32"):
        Split(np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="2 images need int64"):
        Split(np.zeros((2, 3, 4, 4), np.uint8), np.zeros(3, np.int64))


def test_few_shot_is_stratified_without_replacement_and_seeded():
    full = split(np.tile([0, 1, 2], 30))
    few = full.few_shot(7, seed=1)
    assert np.bincount(few.labels).tolist() == [7, 7, 7]
    assert len(np.unique(few.images)) == 21
    assert (full.labels[few.images[:, 0, 0, 0]] == few.labels).all()
    assert (few.images == full.few_shot(7, seed=1).images).all()
    assert (few.images != full.few_shot(7, seed=2).images).any()


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 0, 1], "class 1 has 1 samples"), ([0, 2], "class 1 has 0"), ([], "0")]
)
def test_few_shot_names_the_class_that_is_too_small(labels, message):
    with pytest.raises(ValueError, match=message):
        split(labels).few_shot(2)


def test_few_shot_of_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        split([0, 1]).few_shot(0)


CHOICES = "builtin:characters, builtin:digits, builtin:digits8x8, cifar10, cifar100, folder:PATH, npz:PATH"


@pytest.mark.parametrize(
    "spec", ["builtin:letters", "builtin:", "imagenet", "", "cifar10:x", "folder", "npz:", ",size=3"]
)
def test_unknown_data_set_lists_the_choices(spec):
    with pytest.raises(ValueError, match=f"is not known; choose from {CHOICES}"):
        data.load(spec)


@pytest.mark.parametrize("spec", ["builtin:characters", "builtin:digits", "cifar10", "cifar100"])
@pytest.mark.parametrize("option", ["domain=a", "hold-out=a", "test=0.3", "seed=1"])
def test_options_are_refused_before_anything_is_drawn_or_downloaded(spec, option, monkeypatch, tmp_path):
    monkeypatch.setenv("ENTROPI_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=f"{spec},{option}: .*leave {option.partition('=')[0]} out"):
        data.load(f"{spec},{option}")
    assert not any(tmp_path.iterdir())


def test_options_of_a_builtin_task():
    whole, few = data.load("builtin:digits"), data.load("builtin:digits,size=16,per-class=3,seed=1")
    assert few.name == "builtin:digits,size=16,seed=1,per-class=3" and few.input_shape == (3, 16, 16)
    assert (few.train.labels == whole.train.few_shot(3, seed=1).labels).all()
    assert (few.test.labels == whole.test.labels).all()
    assert data.load("builtin:digits8x8,size=12").input_shape == (1, 12, 12)


def test_digits_and_their_raw_pixels_are_the_same_images():
    digits, raw = data.load("builtin:digits"), data.load("builtin:digits8x8")
    assert digits.input_shape == (3, 32, 32) and raw.input_shape == (1, 8, 8)
    assert (len(digits.train), len(digits.test)) == (1347, 450)
    assert (digits.train.labels == raw.train.labels).all() and (digits.test.labels == raw.test.labels).all()
    assert np.abs(np.bincount(digits.test.labels) - 45).max() <= 2
    assert raw.train.images.max() == 255 and raw.train.images.min() == 0
    # Bilinear upscaling by 4 keeps the mean of the inner pixels; the ink is at the same places.
    small = digits.train.images[:, 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(small.ravel(), raw.train.images.ravel())[0, 1] > 0.97
    assert digits.fingerprint() == data.load("builtin:digits").fingerprint() != raw.fingerprint()
