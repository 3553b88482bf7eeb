import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from entropi.host import figures, probe, selection
from entropi.host.data import Split
from entropi.host.entropy import Entropy
from entropi.host.selection import RungEntropy, Selection, SelectionError, select
from entropi.host.training import outputs


@pytest.fixture(scope="module")
def choice(tiny_ladder, tiny_source):
    return select(tiny_ladder, tiny_source.train, target="tiny")


def test_every_rung_is_measured_and_the_highest_is_chosen(choice, tiny_ladder):
    assert [r.rung for r in choice.rungs] == [0, 1, 2] and {r.entropy.samples for r in choice.rungs} == {96}
    spectral = [r.entropy.spectral for r in choice.rungs]
    assert choice.rung == int(np.argmax(spectral))
    assert (choice.ladder, choice.target) == (tiny_ladder.path.name, "tiny")


def test_features_that_are_there_already_are_not_computed_again(choice, tiny_ladder, tiny_source):
    asked = []

    def features(rung):
        asked.append(rung.index)
        return list(outputs(rung.encoder(), tiny_source.train))

    assert select(tiny_ladder, tiny_source.train, target="tiny", features=features) == choice
    assert asked == [0, 1, 2]


def test_equal_entropies_go_to_the_smallest_alpha(choice):
    same = Entropy(1.0, 2, 3.0, 0.1, 2.0, 96)
    rungs = tuple(replace(r, entropy=same) for r in choice.rungs)
    for estimator in selection.ESTIMATORS:
        assert replace(choice, estimator=estimator, rungs=rungs).rung == 2
    better = (rungs[0], replace(rungs[1], entropy=replace(same, joint=1.5)), rungs[2])
    assert replace(choice, estimator="joint", rungs=better).rung == 1


def test_round_trip(choice, tmp_path):
    choice.save(tmp_path)
    assert Selection.load(tmp_path) == choice == Selection.load(tmp_path / "selection.json")
    assert json.loads((tmp_path / "selection.json").read_text())["chosen_rung"] == choice.rung


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1, "rungs": [3]}', '{"format": 2}', "[]"])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "selection.json").write_text(content)
    with pytest.raises(SelectionError, match=r"selection\.json (is damaged|has format)"):
        Selection.load(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(SelectionError, match=r"selection\.json cannot be read"):
        Selection.load(tmp_path)


def test_wrong_use(tiny_ladder, tiny_source):
    with pytest.raises(ValueError, match="choose from spectral, marginal, joint"):
        select(tiny_ladder, tiny_source.train, "exact")
    with pytest.raises(ValueError, match="no finished rung"):
        select([], tiny_source.train)
    with pytest.raises(ValueError, match="no training images"):
        select(tiny_ladder, tiny_source.train[:0])
    with pytest.raises(ValueError, match="resize"):
        select(tiny_ladder, Split(np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, np.int64)))


def test_probe_on_pixels_and_on_an_encoder(tiny_ladder, tiny_source):
    pixels = probe.probe(None, tiny_source, samples_a_class=2, draws=2)
    features = probe.probe(tiny_ladder[0].encoder(), tiny_source, samples_a_class=2, draws=2)
    for accuracy in (pixels, features):
        assert len(accuracy.few) == 2 and 1 / 36 < accuracy.all <= 1
        assert min(accuracy.few) <= accuracy.few_mean <= max(accuracy.few)
    assert probe.probe(None, tiny_source, samples_a_class=2, draws=2) == pixels


def test_probe_of_separable_features_is_perfect():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    features = np.hstack([np.eye(4)[labels] * 5 + rng.normal(size=(200, 4)) * 0.1, np.ones((200, 1))])
    assert probe.head_accuracy(features[:100], labels[:100], features[100:], labels[100:]) == 1


def test_figure_is_drawn(choice, tmp_path):
    accuracies = [probe.HeadAccuracy(0.9, (0.7, 0.8), 10)] * 3
    figures.entropy_figure(choice, accuracies, tmp_path / "figure.png")
    assert np.asarray(Image.open(tmp_path / "figure.png").convert("L")).std() > 10
    with pytest.raises(ValueError, match="2 accuracies for 3 rungs"):
        figures.entropy_figure(choice, accuracies[:2], tmp_path / "other.png")


def test_figure_of_a_ladder_that_carries_nothing(tmp_path):
    dead = Entropy(0.0, 1, 0.0, 0.0, 0.0, 10)
    choice = Selection("l", "t", "spectral", 4, (RungEntropy(0, 1.0, 10, 0.1, dead),))
    figures.entropy_figure(choice, [probe.HeadAccuracy(0.1, (0.1,), 10)], tmp_path / "figure.png")
