import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from entropi.host.data.division import check, divide
from entropi.host.data.samples import Samples, groups, resized
from entropi.host.data.spec import parse

CLASSES = ("cat", "dog", "eel")
COUNTS = st.lists(st.tuples(*[st.integers(1, 40)] * 3), min_size=1, max_size=3)


def samples(labels, domains=None, splits=None):
    """Samples without images."""
    columns = (None if column is None else np.array(column) for column in (splits, domains))
    return Samples(CLASSES, np.array(labels, np.int64), lambda indices, size: indices, *columns)


def samples_of(counts):
    """counts[d][c] samples of class c in domain d."""
    pairs = [(d, c) for d, row in enumerate(counts) for c, count in enumerate(row) for _ in range(count)]
    return samples([c for _, c in pairs], [f"d{d}" for d, _ in pairs])


@given(COUNTS, st.floats(0.01, 0.99), st.integers(0, 9))
def test_share_is_drawn_from_every_class_of_every_domain(counts, share, seed):
    found = samples_of(counts)
    spec = parse(f"x,test={share},seed={seed}")
    sizes = np.array(counts).ravel()
    expected = np.minimum(np.floor(sizes * share + 0.5), sizes - 1)
    if not expected.any():
        with pytest.raises(ValueError, match="no image is left to test on"):
            divide(found, spec)
        return
    train, test = divide(found, spec)
    assert sorted([*train, *test]) == list(range(len(found.labels)))
    group = groups(found.domains, found.labels)
    assert (np.bincount(group[test], minlength=len(sizes)) == expected).all()
    again = divide(found, spec)
    assert (again[0] == train).all() and (again[1] == test).all()


def test_another_seed_draws_others():
    found = samples_of([(40, 40, 40)])
    first, second = (divide(found, parse(f"x,seed={seed}"))[1] for seed in (0, 1))
    assert len(first) == len(second) == 24 and set(first) != set(second)
    assert (first == divide(found, parse("x"))[1]).all()


def test_held_out_images_stay_held_out_in_a_single_domain():
    found = samples_of([(20, 20, 20), (30, 30, 30)])
    train, _ = divide(found, parse("x"))
    _, test = divide(found, parse("x,domain=d1"))
    assert len(test) == 18 and not set(train) & set(test)


def test_hold_out_trains_on_all_of_the_others():
    found = samples_of([(2, 3, 4), (5, 6, 7), (1, 1, 1)])
    train, test = divide(found, parse("x,hold-out=d1"))
    assert set(found.domains[test]) == {"d1"} and len(test) == 18
    assert set(found.domains[train]) == {"d0", "d2"} and len(train) == 12
    train, test = divide(found, parse("x,hold-out=d1+d2"))
    assert set(found.domains[train]) == {"d0"} and len(test) == 21


@pytest.mark.parametrize(
    ("names", "tested"), [(("train", "test"), "test"), (("train", "val"), "val"), (("train", "val", "test"), "test")]
)
def test_own_split(names, tested):
    splits = np.repeat(names, 3)
    train, test = divide(samples([0, 1, 2] * len(names), splits=splits), parse("x"))
    assert set(splits[train]) == {"train"} and set(splits[test]) == {tested}
    assert len(train) == len(test) == 3


@pytest.mark.parametrize("names", [["train"], ["test"], ["test", "val"]])
def test_half_a_split(names):
    with pytest.raises(ValueError, match=f"{' and '.join(names)} is all there is"):
        divide(samples([0, 1, 2] * len(names), splits=np.repeat(names, 3)), parse("x"))


def test_few_shot_takes_from_training_alone():
    found = samples_of([(20, 30, 40)])
    train, test = divide(found, parse("x,seed=3"))
    few, same = divide(found, parse("x,seed=3,per-class=5"))
    assert (same == test).all() and set(few) < set(train)
    assert np.bincount(found.labels[few]).tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    ("labels", "domains", "spec", "message"),
    [
        ([0, 0, 1, 1], "aaaa", "x", "class 'eel' has 0 training images and needs 1; bring some"),
        ([0, 1, 2, 0, 1], "aaabb", "x,domain=b", "class 'eel' has 0"),
        ([0, 1, 2, 0, 1], "aaabb", "x,hold-out=a", "class 'eel' has 0"),
        ([0] * 10 + [1] * 5 + [2] * 9, "a" * 24, "x,per-class=5", "class 'dog' has 4 .* needs 5; ask for at most 4"),
        ([0, 1, 2], "aaa", "x", "no image is left to test on"),
    ],
)
def test_too_few_images(labels, domains, spec, message):
    with pytest.raises(ValueError, match=message):
        divide(samples(labels, list(domains)), parse(spec))


def test_a_class_may_lack_in_the_held_out_domain():
    _, test = divide(samples([0, 1, 2, 0, 1], list("aaabb")), parse("x,hold-out=b"))
    assert test.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("spec", "split", "domains", "message"),
    [
        ("x,domain=a", True, "", "no domains; leave domain out"),
        ("x,hold-out=a", False, "", "no domains; leave hold-out out"),
        ("x,domain=a+c", False, "ba", "domain 'c' is not there; choose from a, b"),
        ("x,hold-out=A", False, "ab", "choose from a, b"),
        ("x,hold-out=a,domain=b", False, "ab", "leave domain out"),
        ("x,hold-out=a+b", False, "ab", "no domain is left to train on; hold out fewer than 2"),
        ("x,test=0.1", True, "", "a split of its own; leave test out"),
        ("x,test=0.1,hold-out=a", False, "ab", "hold-out says what is tested on; leave test out"),
        ("x,seed=1", True, "", "nothing is drawn; leave seed out, or give per-class"),
        ("x,seed=1,hold-out=a", False, "ab", "leave seed out"),
    ],
)
def test_options_that_the_data_cannot_take(spec, split, domains, message):
    with pytest.raises(ValueError, match=message):
        check(parse(spec), split, tuple(domains))


def test_options_that_it_can():
    check(parse("x,seed=1,per-class=2,size=8"), True, ())
    check(parse("x,seed=1,test=0.3,domain=a"), False, ("a", "b"))
    check(parse("x,seed=1,per-class=2,hold-out=a"), True, ("a", "b"))


@given(COUNTS)
def test_mixed_deals_one_of_every_group_in_turn(counts):
    found = samples_of(counts)
    mixed = found.mixed()
    order = mixed.read(np.arange(len(found.labels)), None)
    assert sorted(order) == list(range(len(order)))
    assert (found.labels[order] == mixed.labels).all() and (found.domains[order] == mixed.domains).all()
    group = groups(mixed.domains, mixed.labels)
    sizes = np.bincount(group)
    for end in range(len(group)):
        seen = np.bincount(group[:end], minlength=len(sizes))
        left = seen[seen < sizes]
        assert len(left) == 0 or seen.max() <= left.min() + 1
    for number in range(len(sizes)):
        assert (np.diff(order[group == number]) > 0).all()  # within a group as they were


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_resizing_is_pillows(height, width, size, channels, seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, channels, height, width), np.uint8)
    result = resized(images, size)
    assert result.shape == (2, channels, size, size) and result.flags.c_contiguous
    for image, found in zip(images, result, strict=True):
        pixels = image.transpose(1, 2, 0) if channels == 3 else image[0]
        expected = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
        assert (found.transpose(1, 2, 0).squeeze() == expected.squeeze()).all()
    assert (resized(images, None) == images).all()
