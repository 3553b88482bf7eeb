import contextlib
import json

import numpy as np
import pytest

from entropi.host.data import Dataset, Split
from entropi.host.networks.inference import outputs
from entropi.host.paper import Experiments, experiments, regret, results, run
from entropi.host.paper import survey as surveys
from entropi.host.paper.features import FeatureStore
from entropi.host.paper.figure import figure_3
from entropi.host.training.schedule import PRESETS

SMOKE = {"schedule": PRESETS["smoke"], "archs": ("resnet8",), "seeds": 1, "source": "builtin:digits,per-class=40"}


@contextlib.contextmanager
def bar(title):
    yield lambda done, total, text: None


@pytest.fixture(scope="module")
def target(tiny_source):
    labels = tiny_source.train.labels % 4
    return Dataset("four", tuple("abcd"), Split(tiny_source.train.images, labels), tiny_source.test[:24])


def test_an_image_of_several_tasks_is_encoded_once(tiny_ladder, target, tmp_path):
    train = target.train
    store = FeatureStore(tmp_path, [train, train[10:40], target.test])
    distinct = {image.tobytes() for split in (train, target.test) for image in split.images}
    assert len(store) == len(distinct)
    rung, seen = tiny_ladder[1], []
    store.encode(rung, lambda done, total, text: seen.append((done, total)))
    assert seen[-1] == (len(store), len(store)) and store.file(rung).exists()
    expected = outputs(rung.encoder(), train)
    np.testing.assert_allclose(store(rung, train), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(store(rung, train[10:40]), store(rung, train)[10:40])
    assert FeatureStore(tmp_path, [train]).file(rung) != store.file(rung) != store.file(tiny_ladder[0])
    with pytest.raises(ValueError, match="no images"):
        FeatureStore(tmp_path, [])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A reproduction that takes seconds, and where it is."""
    folder = tmp_path_factory.mktemp("paper")
    said = []
    plan = Experiments(**SMOKE, cifar100="builtin:digits,per-class=12")
    return run(plan, folder, bar, said.append), folder, plan, said


def test_a_survey_says_what_every_rung_is_worth(made):
    (survey,), folder, _, said = made
    entry = survey["targets"]["CIFAR-100"]
    count = len(survey["rungs"])
    assert f"{count} rungs" in said[0] and entry["train"] == 120
    assert all(len(values) == count for values in (entry["accuracy"], *entry["estimates"].values()))
    assert set(entry["picks"]) == {*entry["estimates"]} and entry["chosen"] in entry["as_good"]
    for name, rung in entry["picks"].items():
        assert entry["estimates"][name][rung] == max(entry["estimates"][name])
    assert {"0", str(entry["chosen"]), *map(str, entry["picks"].values())} == set(entry["paper_accuracy"])
    assert list(entry["few"]) == ["5", "10"] and len(entry["few"]["5"]) == surveys.FEW_DRAWS
    assert json.loads((folder / "surveys" / "resnet8-seed0.json").read_text()) == survey


def test_run_again_it_only_reads(made):
    before, folder, plan, _ = made
    files = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    assert run(plan, folder, bar, lambda line: None) == before
    assert files == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_survey_of_another_ladder_is_refused(made, tiny_ladder, target):
    _, folder, _, _ = made
    store = FeatureStore(folder / "features", [target.train, target.test])
    with pytest.raises(surveys.SurveyError, match="another ladder"):
        surveys.survey(tiny_ladder, {"four": target}, (), store, folder / "surveys" / "resnet8-seed0.json")


@pytest.mark.parametrize("text", ["", "{}", '{"format": 0, "rungs": []}'])
def test_a_survey_that_cannot_be_read_is_refused(tiny_ladder, target, tmp_path, text):
    path = tmp_path / "survey.json"
    path.write_text(text)
    store = FeatureStore(tmp_path / "features", [target.train, target.test])
    with pytest.raises(surveys.SurveyError, match="survey.json is damaged or of another release; move it away"):
        surveys.survey(tiny_ladder, {"four": target}, (), store, path)
    assert path.read_text() == text


def test_the_table_and_the_figure_are_written(made, tmp_path):
    found = made[0]
    rows = results.table_1(found)
    assert [row["head"] for row in rows] == ["ridge", "paper"] and rows[0]["paper"] is None
    other = json.loads(json.dumps(found[0]))
    other["ladder"]["seed"], other["ladder"]["arch"] = 1, "resnet18"
    first = json.loads(json.dumps(other))
    other["targets"]["CIFAR-100"]["accuracy"] = [a / 2 for a in first["targets"]["CIFAR-100"]["accuracy"]]
    content = results.write("table1", [first, other], tmp_path)
    assert content[0]["paper"]["alpha"] == 0.0077 and len(content[0]["dense"]) == 2
    gains = np.subtract(content[0]["selected"], content[0]["dense"])
    assert content[0]["deviations"] == pytest.approx(gains.mean() / gains.std(ddof=1))
    curves = results.write("fig3", [first, other], tmp_path)
    assert curves["seeds"] == 2 and len(curves["accuracy"]["mean"]) == len(first["rungs"])
    assert (tmp_path / "fig3.png").stat().st_size > 10_000
    figure_3({**curves, "seeds": 1}, tmp_path / "one.png")
    with pytest.raises(ValueError, match="no survey is about resnet18 on CIFAR-100"):
        results.curves(found, *results.FIG_3)


def test_regret_is_what_a_pick_loses_to_the_best_rung():
    target = {
        "accuracy": [0.5, 0.6, 0.58], "test": 100, "chosen": 2, "picks": {"spectral": 1, "marginal": 0},
        "few": {"5": [{"spectral": 0}, {"spectral": 2}]},
        "estimates": {"spectral": [1.0, 3.0, 2.0], "marginal": [3.0, 2.0, 1.0]},
    }  # fmt: skip
    rungs = [{"source_accuracy": accuracy} for accuracy in (0.9, 0.86, 0.88)]
    settings = {"arch": "a", "seed": 0, "schedule": {"augment": True}, "source_test_images": 1000}
    survey = {"ladder": settings, "rungs": rungs, "targets": {"t": target}}
    rows = regret.regrets(survey)
    assert rows[0]["best"] == 1 and rows[0]["standard_error"] == pytest.approx(100 * (0.6 * 0.4 / 100) ** 0.5)
    assert rows[0]["regret"] == pytest.approx(
        {
            "select": 2,
            "spectral": 0,
            "spectral, kept": 2,
            "marginal": 10,
            "marginal, kept": 10,
            "dense": 10,
            "smallest kept": 2,
            "last rung": 2,
            "blind guess": 4,
        }  # fmt: skip
    )
    assert regret.summary(rows)["marginal"] == {"mean": pytest.approx(10), "worst": pytest.approx(10), "cases": 1}
    assert regret.few_summary(rows)["5"]["spectral"] == {
        "mean": pytest.approx(6), "worst": pytest.approx(10), "cases": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"cifar100": None}, "no target"),
        ({"archs": ("resnet19",)}, "resnet19"),
    ],
)
def test_wrong_experiments(wrong, message):
    with pytest.raises(ValueError, match=message):
        Experiments(**wrong)


def test_pacs_is_pooled_and_held_out_in_turn():
    targets = Experiments(cifar100=None, pacs="folder:P").targets()
    assert targets["PACS"] == "folder:P" and len(targets) == 1 + len(experiments.PACS_DOMAINS)
    assert targets["PACS, sketch held out"] == "folder:P,hold-out=sketch"


def test_images_of_another_size_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match="same size"):
        run(Experiments(**SMOKE, cifar100="builtin:digits,size=28"), tmp_path, bar, print)
    assert not list(tmp_path.iterdir())
