import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from entropi.host import figures, probe, selection
from entropi.host.accuracy import HeadAccuracy
from entropi.host.cli import ladders
from entropi.host.data import Split
from entropi.host.entropy import DEFAULT
from entropi.host.networks.inference import outputs
from entropi.host.selection import Selection, SelectionError, by_chance, check, select


@pytest.fixture(scope="module")
def choice(tiny_ladder, tiny_source):
    return select(tiny_ladder, tiny_source.train, target="tiny", estimators=("marginal", "joint", "probe"))


@pytest.fixture(scope="module")
def choose(tiny_ladder):
    """select on the tiny ladder's rungs with given features, one array a rung."""

    def call(
        *features, estimator="spectral", labels=None, source=(0.5, 0.5, 0.5), source_images=72, **options
    ) -> Selection:
        samples = len(features[0])
        labels = np.zeros(samples, np.int64) if labels is None else labels
        images = np.broadcast_to(np.uint8(0), (samples, *tiny_ladder[0].input_shape))
        rungs = zip(tiny_ladder[: len(features)], source, strict=False)
        return select(
            [replace(rung, source_accuracy=accuracy, source_images=source_images) for rung, accuracy in rungs],
            Split(images, labels),
            estimator,
            features=lambda rung: features[rung.index],
            **options,
        )

    return call


def gaussian(rng, samples, spectrum):
    """Features whose covariance has this spectrum, in random directions."""
    units = len(spectrum)
    return (rng.normal(size=(samples, units)) * np.sqrt(spectrum)) @ np.linalg.qr(rng.normal(size=(units, units)))[0]


def h(spectrum):
    p = np.array(spectrum) / np.sum(spectrum)
    return float(-(p * np.log(p)).sum())


# Measuring and choosing


def test_a_rung_that_forgot_its_source_task_is_not_chosen(choose):
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(60, 4))
    narrow = wide[:, :1] + 1e-3 * wide
    trained = (0.8, 0.79, 0.7)
    for bootstrap in (0, 20):
        fit = choose(narrow, narrow, wide, source=trained, bootstrap=bootstrap, source_fall=0.03)
        assert fit.forgotten == (2,) and fit.best != 2 and 2 not in fit.as_good and fit.rung == 1
        assert "left out" in fit.explanation and fit.explanation.endswith("2")
        assert choose(narrow, narrow, wide, source=trained, bootstrap=bootstrap).rung == 2
        assert choose(narrow, wide, wide, source=trained, bootstrap=bootstrap, source_fall=0.2).forgotten == ()
    paper = choose(narrow, narrow, wide, source=trained, estimator="paper")
    assert (paper.estimator, paper.bootstrap, paper.source_fall, paper.forgotten) == ("marginal", 0, 1, ())
    with pytest.raises(ValueError, match="source_fall is -0.1"):
        choose(narrow, source_fall=-0.1)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**5), st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_by_default_a_rung_may_fall_behind_by_chance(images, accuracies):
    fall, best = by_chance(accuracies, images), max(accuracies)
    assert 0 < fall < 2 / images**0.5
    if 0.1 < best < 0.9 and images > 1000:
        deviation = (2 * best * (1 - best) / images) ** 0.5
        assert fall == pytest.approx(1.645 * deviation, rel=0.01)


def test_more_images_show_that_a_rung_has_forgotten(choose, tiny_ladder):
    wide = np.random.default_rng(0).normal(size=(60, 4))
    narrow = wide[:, :1] + 1e-3 * wide
    few = choose(narrow, narrow, wide, source=(0.8, 0.79, 0.7), bootstrap=0)
    many = choose(narrow, narrow, wide, source=(0.8, 0.79, 0.7), bootstrap=0, source_images=10_000)
    assert (few.forgotten, few.rung) == ((), 2) and (many.forgotten, many.rung) == ((1, 2), 0)


def test_a_rung_of_too_many_weights_is_not_chosen(choose, tiny_ladder):
    """Nor is it the measure of what the others have forgotten."""
    wide = np.random.default_rng(0).normal(size=(60, 4))
    narrow = wide[:, :1] + 1e-3 * wide
    sizes = [rung.nonzeros for rung in tiny_ladder]
    fit = choose(wide, wide, narrow, source=(0.9, 0.72, 0.7), bootstrap=0, at_most=sizes[1], source_fall=0.05)
    assert (fit.too_large, fit.forgotten, fit.best, fit.rung) == ((0,), (), 1, 1)
    assert f"left out, more than {sizes[1]:,} weights: 0" in fit.explanation
    assert choose(wide, narrow, narrow, bootstrap=0, estimator="paper", at_most=sizes[2]).rung == 2
    with pytest.raises(ValueError, match=r"at_most is 5 weights and the smallest rung has [\d,]+; prune further"):
        choose(wide, wide, wide, at_most=5)


def test_every_rung_is_measured_and_the_choice_is_as_good_as_the_best(choice, tiny_ladder):
    assert [r.rung for r in choice.rungs] == [0, 1, 2] and {r.entropy.samples for r in choice.rungs} == {96}
    assert [list(r.estimates) for r in choice.rungs] == [[DEFAULT, "marginal", "joint", "probe"]] * 3
    assert choice.best == int(np.argmax([r.entropy.estimates[DEFAULT] for r in choice.rungs]))
    assert choice.best in choice.as_good and choice.rung == max(choice.as_good)
    assert (choice.ladder, choice.target) == (tiny_ladder.path.name, "tiny")


def test_features_that_are_there_already_are_not_computed_again(choice, tiny_ladder, tiny_source):
    asked = []

    def features(rung):
        asked.append(rung.index)
        return outputs(rung.encoder(), tiny_source.train)

    again = select(
        tiny_ladder, tiny_source.train, target="tiny", estimators=("marginal", "joint", "probe"), features=features
    )
    assert again == choice and asked == [0, 1, 2]


def test_only_what_is_asked_for_is_measured(choose):
    y = np.random.default_rng(0).normal(size=(30, 4))
    assert list(choose(y, estimator="paper", bootstrap=0).rungs[0].estimates) == ["marginal"]
    asked = ("joint", "paper", "spectral")
    assert list(choose(y, estimators=asked, bootstrap=0).rungs[0].estimates) == ["spectral", "joint", "marginal"]


def test_without_a_bootstrap_the_highest_is_chosen_and_equals_go_to_the_smallest(choose):
    rng = np.random.default_rng(0)
    low, high = gaussian(rng, 200, [9, 1, 0.1]), gaussian(rng, 200, [1, 1, 1])
    picked = choose(low, high, low, bootstrap=0)
    assert (picked.best, picked.as_good, picked.rung) == (1, (1,), 1) and picked.rungs[0].interval is None
    assert picked.explanation.startswith("rung 1 has the highest spectral; no bootstrap says")
    tied = choose(high, high, low, bootstrap=0)
    assert (tied.best, tied.as_good, tied.rung, tied.undecided) == (1, (0, 1), 1, False)
    assert tied.explanation == "rungs 0 and 1 are as good as rung 1 to the last digit; 1 is the smallest"


def test_the_smallest_of_those_as_good_is_chosen(choose):
    rng = np.random.default_rng(1)
    same = gaussian(rng, 400, [3, 2, 1, 1])
    alike = same + 0.001 * rng.normal(size=same.shape)
    picked = choose(same, alike, gaussian(rng, 400, [9, 1, 0.1, 0.1]))
    assert picked.as_good == (0, 1) and picked.rung == 1 and not picked.undecided
    assert (
        picked.explanation == f"rungs 0 and 1 are as good as rung {picked.best} within the interval; 1 is the smallest"
    )
    clear = choose(same, gaussian(rng, 400, [9, 1, 0.1, 0.1]), gaussian(rng, 400, [9, 1, 0.1, 0.1]))
    assert clear.as_good == (0,) and clear.rung == 0
    assert clear.explanation == "no other rung is as good as rung 0 within the interval; 0 is chosen"


# The bootstrap


def test_intervals_cover_the_truth_as_often_as_they_say(choose):
    spectrum, trials = [5, 3, 2, 1, 1, 0.5], 120
    covered = equal = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        picked = choose(*(gaussian(rng, 250, spectrum) for _ in range(2)), seed=trial)
        low, high = picked.rungs[0].interval
        covered += low <= h(spectrum) <= high
        equal += picked.as_good == (0, 1)
    assert 0.82 <= covered / trials <= 0.97
    assert 0.82 <= equal / trials <= 0.97


def test_clearly_different_spectra_are_told_apart(choose):
    for trial in range(15):
        rng = np.random.default_rng(trial)
        spectra = ([4, 1, 1, 0.2], [2, 1, 1, 1], [8, 1, 0.1, 0.1])
        picked = choose(*(gaussian(rng, 300, spectrum) for spectrum in spectra), seed=trial)
        assert (picked.rung, picked.as_good, picked.undecided) == (1, (1,), False)


def test_draws_are_paired(choose):
    """A difference that is small beside either interval, but the same for every draw, is seen."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(200, 4)) * [5, 3, 2, 1]
    better = choose(y * [1.03, 1, 1, 1], y)
    (low, high), (other_low, other_high) = (r.interval for r in better.rungs)
    assert max(low, other_low) < min(high, other_high)
    (low, high), same = (r.difference for r in better.rungs)
    assert better.as_good == (1,) and same == (0, 0) and low < high < 0


def test_fewer_images_widen_the_interval(choose):
    rng = np.random.default_rng(0)
    y = gaussian(rng, 4000, 1 / np.arange(1.0, 33))
    labels = rng.permutation(4000) % 8
    widths = []
    for samples in (40, 400, 4000):  # 5 images a class, then more
        picked = np.concatenate([np.flatnonzero(labels == c)[: samples // 8] for c in range(8)])
        low, high = choose(y[picked], labels=labels[picked]).rungs[0].interval
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2] > 0


def test_the_bootstrap_is_deterministic_and_its_seed_matters(choose):
    rng = np.random.default_rng(0)
    features = [gaussian(rng, 60, [3, 2, 1]) for _ in range(3)]
    first, again, other = (choose(*features, seed=seed) for seed in (4, 4, 5))
    assert first == again
    assert [r.interval for r in first.rungs] != [r.interval for r in other.rungs]
    assert [r.entropy for r in first.rungs] == [r.entropy for r in other.rungs]


@pytest.mark.parametrize(
    "estimator", ["joint", "marginal-robust", "spectral-correlation", "rankme", "marginal", "probe"]
)
@pytest.mark.parametrize("samples", [10, 40])
def test_every_estimator_can_choose_by_intervals_and_from_few_images(choose, estimator, samples):
    rng = np.random.default_rng(0)
    picked = choose(*rng.normal(size=(3, samples, 16)), estimator=estimator, labels=np.arange(samples) % 2)
    assert all(low <= high for r in picked.rungs for low, high in (r.interval, r.difference))
    assert picked.rung in picked.as_good and picked.best in picked.as_good


def test_one_image_is_enough_to_be_undecided(choose):
    picked = choose(*np.random.default_rng(0).normal(size=(3, 1, 4)))
    assert picked.undecided and picked.rung == 2 and {r.interval for r in picked.rungs} == {(0, 0)}


# When it cannot say


def test_joint_entropy_at_its_ceiling_says_so(choose):
    rng = np.random.default_rng(0)
    rich, poor = rng.uniform(size=(2, 200, 30)), np.eye(3)[rng.integers(3, size=200)]
    picked = choose(*rich, poor, estimator="joint")
    assert picked.saturated and picked.undecided and picked.as_good == (0, 1)
    assert "undecided: joint stands within 1% of its ceiling, log(images) = 5.30, on 2 of 3" in picked.explanation
    assert not choose(rich[0], poor, poor, estimator="joint").undecided
    assert not choose(*rich, poor).saturated


def test_rungs_that_are_all_alike_are_undecided(choose):
    rng = np.random.default_rng(0)
    same = gaussian(rng, 100, [3, 2, 1])
    picked = choose(*(same + 0.001 * rng.normal(size=same.shape) for _ in range(3)))
    assert picked.undecided and not picked.saturated and picked.rung == 2
    assert picked.explanation.startswith("undecided: spectral finds 3 of 3 rungs as good as rung")
    dead = choose(*np.ones((3, 50, 4)))
    assert dead.undecided and dead.rung == 2


# The probe


def test_probe_follows_the_labels_and_not_the_spread(choose):
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    noise = rng.normal(size=(300, 6))
    informed = noise * 0.3 + np.hstack([np.eye(3)[labels] * 4, np.zeros((300, 3))])
    assert choose(noise, informed, labels=labels).best == 0
    picked = choose(noise, informed, labels=labels, estimator="probe", estimators=("joint",))
    assert picked.rung == picked.best == 1 and picked.rungs[1].probe == 1
    assert picked.rungs[0].interval[0] < picked.rungs[0].probe < picked.rungs[0].interval[1]


def test_probe_needs_labels(choose):
    y = np.random.default_rng(0).normal(size=(9, 4))
    with pytest.raises(ValueError, match="all target labels are 0; probe needs at least 2 classes"):
        choose(y, estimator="probe")
    with pytest.raises(ValueError, match="class 7 has 1 target image and probe leaves one out"):
        choose(y, estimators=("probe",), labels=np.array([1, 1, 1, 1, 7, 2, 2, 2, 2]))


# Files, the command and the figure


def test_round_trip(choice, choose, tmp_path):
    choice.save(tmp_path)
    assert Selection.load(tmp_path) == choice == Selection.load(tmp_path / "selection.json")
    content = json.loads((tmp_path / "selection.json").read_text())
    assert content["chosen_rung"] == choice.rung and content["explanation"] == choice.explanation
    plain = choose(np.eye(3), estimator="joint", bootstrap=0)
    plain.save(tmp_path / "plain.json")
    assert Selection.load(tmp_path / "plain.json") == plain


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2, "rungs": [3]}', '{"format": 2}', "[]", "\xff", "NaN"])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "selection.json").write_text(content, encoding="latin-1")
    with pytest.raises(SelectionError, match=r"selection\.json is damaged"):
        Selection.load(tmp_path)


def test_older_format_is_to_be_made_again(tmp_path):
    (tmp_path / "selection.json").write_text('{"format": 1, "rungs": []}')
    with pytest.raises(SelectionError, match="has format 1 and this version reads 2; make it again"):
        Selection.load(tmp_path)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), value=st.sampled_from([None, "x", -1, 1e9, [], {}, [1, 2, 3], True]))
def test_damage_is_noticed_or_harmless(choice, tmp_path_factory, seed, value):
    path = tmp_path_factory.mktemp("damage") / "selection.json"
    choice.save(path)
    content = json.loads(path.read_text())
    rng, part = random.Random(seed), content
    while True:
        key = rng.choice(list(part) if isinstance(part, dict) else range(len(part)))
        if not isinstance(part[key], dict | list) or not part[key] or rng.random() < 0.1:
            break
        part = part[key]
    if value is None:
        del part[key]
    else:
        part[key] = value
    path.write_text(json.dumps(content))
    try:
        loaded = Selection.load(path)
    except SelectionError as error:
        assert str(error).count("\n") == 0 and "selection.json" in str(error)
    else:
        assert loaded.rung == choice.rung
        json.dumps(loaded.summary())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SelectionError, match=r"selection\.json cannot be read"):
        Selection.load(tmp_path)


def test_wrong_use(tiny_ladder, tiny_source, choose):
    with pytest.raises(ValueError, match="'exact' is not known; choose from joint, marginal, .*, paper, probe"):
        select(tiny_ladder, tiny_source.train, "exact")
    with pytest.raises(ValueError, match="'more' is not known"):
        select(tiny_ladder, tiny_source.train, estimators=("more",))
    with pytest.raises(ValueError, match="bootstrap is 5; give 0 for no intervals, or at least 20"):
        select(tiny_ladder, tiny_source.train, bootstrap=5)
    with pytest.raises(ValueError, match="no finished rung"):
        select([], tiny_source.train)
    with pytest.raises(ValueError, match="no training images"):
        select(tiny_ladder, tiny_source.train[:0])
    with pytest.raises(ValueError, match="option size="):
        select(tiny_ladder, Split(np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, np.int64)))
    with pytest.raises(ValueError, match="rung01 have 2 rows for 3 images"):
        choose(np.eye(3), np.eye(2))
    assert check("paper", "joint", "marginal") == ("marginal", "joint")


def test_the_table_shows_every_column_and_why(choice):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(ladders._selection_table(json.loads(json.dumps(choice.summary()))))
    text = captured.get()
    for word in (DEFAULT, "marginal", "joint", "probe", "90 % interval", "chosen", choice.explanation):
        assert word in text
    for name in check(*selection.ESTIMATORS, *selection.ALIASES, selection.PROBE):
        assert f"- {name}:" in ladders.select.__doc__.replace(", the default", "")


def test_probe_on_pixels_and_on_an_encoder(tiny_ladder, tiny_source):
    pixels = probe.probe(None, tiny_source, samples_a_class=2, draws=2)
    features = probe.probe(tiny_ladder[0].encoder(), tiny_source, samples_a_class=2, draws=2)
    for accuracy in (pixels, features):
        assert len(accuracy.few) == 2 and 1 / 36 < accuracy.all <= 1
        assert min(accuracy.few) <= accuracy.few_mean <= max(accuracy.few)
    assert probe.probe(None, tiny_source, samples_a_class=2, draws=2) == pixels


def test_figure_is_drawn(choice, tmp_path):
    accuracies = [HeadAccuracy(0.9, (0.7, 0.8), 10)] * 3
    figures.entropy_figure(choice, accuracies, tmp_path / "figure.png")
    assert np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 10
    with pytest.raises(ValueError, match="2 accuracies for 3 rungs"):
        figures.entropy_figure(choice, accuracies[:2], tmp_path / "other.png")


def test_figure_of_a_ladder_that_carries_nothing(choose, tmp_path):
    dead = choose(np.ones((10, 4)), bootstrap=0)
    figures.entropy_figure(dead, [HeadAccuracy(0.1, (0.1,), 10)], tmp_path / "figure.png")
    assert math.isclose(dead.rungs[0].estimates["spectral"], 0) and replace(dead, seed=1).rung == 0
