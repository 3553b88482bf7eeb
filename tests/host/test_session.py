"""A session predicts before it learns, goes on after any interruption, and is never mistaken for another."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropi.device import HeadConfig, HostDevice
from entropi.export import export_pixels
from entropi.firmware_sim import Simulator
from entropi.host.data import Dataset, Split
from entropi.host.session.folder import CHECKPOINT, SessionError, SessionFolder, Settings
from entropi.host.session.session import Session, check_target, session_length

HEAD = HeadConfig(4, batch=4, bytes_per_parameter=8, learning_rate=0.3, momentum=0.9)
LATER = replace(HEAD, new_classes=2, replay=9)
TRAIN, TEST = 60, 20


def split(count: int, seed: int) -> Split:
    """4x4 images, bright in the quarter that is their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.integers(0, 150, (count, 1, 4, 4))
    for image, label in zip(images, labels, strict=True):
        row, column = 2 * (label // 2), 2 * (label % 2)
        image[0, row : row + 2, column : column + 2] += 60
    return Split(images.astype(np.uint8), labels)


TARGET = Dataset("quarters", tuple("abcd"), split(TRAIN, 0), split(TEST, 1))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return export_pixels(TARGET.train, tmp_path_factory.mktemp("pixels") / "bundle")


def chosen(bundle, **changes) -> Settings:
    base = Settings(bundle.image_crc32, "quarters", TARGET.fingerprint(), "host", 8192, HEAD, every=25)
    return replace(base, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finish(folder: Path, bundle, device=None, **changes) -> dict:
    with device or HostDevice(bundle, 8192, head=changes.get("head", HEAD)) as opened:
        return Session(SessionFolder(folder, chosen(bundle, **changes)), opened, TARGET).run()


@pytest.fixture(scope="module")
def wholes(bundle, tmp_path_factory) -> dict[HeadConfig, dict[str, bytes]]:
    """What sessions keep that were not interrupted, by head."""
    found = {}
    for head in (HEAD, LATER):
        folder = tmp_path_factory.mktemp("whole") / "session"
        finish(folder, bundle, epochs=2, head=head)
        found[head] = contents(folder)
    return found


def test_what_a_session_keeps(bundle, wholes):
    whole = wholes[HEAD]
    assert sorted(whole) == ["head.npy", "learning_curve.png", "session.json"]
    content = json.loads(whole["session.json"])
    samples = content["samples"]
    device = HostDevice(bundle, 8192, head=HEAD)
    for index, label, predicted, loss in zip(*samples.values(), strict=True):
        assert label == TARGET.train.labels[index]
        features = device.features(TARGET.train.images[index])
        assert device.predict_features(features)[0] == predicted
        assert device.learn_features(features, label) == loss
    device.flush()
    assert sorted(samples["index"][:TRAIN]) == sorted(samples["index"][TRAIN:]) == list(range(TRAIN))
    assert len(samples["index"]) == session_length(TARGET, None, 2)
    assert samples["index"][:TRAIN] != samples["index"][TRAIN:] != list(range(TRAIN))
    assert [grading["learned"] for grading in content["held_out"]] == [25, 50, 75, 100, 120]
    assert content["accuracy"] == content["held_out"][-1]["accuracy"] == device.accuracy(TARGET.test) > 0.7
    hits = np.equal(samples["predicted"], samples["label"])
    assert content["accuracy_before_learning"] == hits[:TRAIN].mean()


@settings(max_examples=8, deadline=None)
@given(
    head=st.sampled_from([HEAD, LATER]),
    stops=st.lists(st.integers(1, 90), max_size=6),
    kills=st.sets(st.integers(1, 400), max_size=3),
)
def test_an_interrupted_session_ends_with_the_same_bytes(bundle, wholes, tmp_path_factory, head, stops, kills):
    """Stopped after so many questions whether to stop, or killed, with no time to write, after so many in all."""
    folder = tmp_path_factory.mktemp("cut") / "session"
    asked = 0

    class Killed(Exception):
        pass

    def ask(limit: int | None):
        def stop() -> bool:
            nonlocal asked, left
            asked += 1
            left -= 1
            if asked in kills:
                raise Killed
            return limit is not None and left < 0

        left = limit or 0
        return stop

    queue, content = list(stops), None
    while content is None:
        limit = queue.pop() if queue else None
        with HostDevice(bundle, 8192, head=head) as device:
            session = Session(SessionFolder(folder, chosen(bundle, epochs=2, head=head)), device, TARGET)
            try:
                content = session.run(stop=ask(limit))
            except Killed:
                continue
            assert content or (folder / CHECKPOINT).exists() or session.learned == 0
    assert contents(folder) == wholes[head]


def test_new_classes_are_learned_after_the_others(bundle, wholes):
    content = json.loads(wholes[LATER]["session.json"])
    old = int((TARGET.train.labels < 2).sum())
    assert content["rounds"] == [0, old, 2 * old, old + TRAIN, 2 * TRAIN]
    labels = np.array(content["samples"]["label"])
    assert labels[: 2 * old].max() == 1 and labels[2 * old :].min() == 2
    assert [grading["learned"] for grading in content["held_out"]] == sorted({25, 50, 2 * old, 75, 100, 120})
    share = (TARGET.test.labels < 2).mean()
    for grading in content["held_out"]:
        parts = share * grading["accuracy_old_classes"] + (1 - share) * grading["accuracy_new_classes"]
        assert grading["accuracy"] == pytest.approx(parts)
        assert (grading["accuracy_new_classes"] > 0) == (grading["learned"] > 2 * old)


def test_more_new_classes_than_there_are_others(bundle):
    check_target(TARGET, bundle, new_classes=3)
    alone = replace(TARGET, classes=TARGET.classes[:1])
    with pytest.raises(ValueError, match="has the one class '.*'; a head tells 2 or more apart"):
        check_target(alone, bundle)
    with pytest.raises(ValueError, match="4 new classes of 4 leave none to begin with; let at most 3 come later"):
        check_target(TARGET, bundle, new_classes=4)


def test_counts_go_on_too(bundle, tmp_path):
    """The emulated board's instructions and stack are those of the session, however often it was interrupted."""

    def simulator() -> Simulator:
        return Simulator(bundle, budget=8192, head=HEAD)

    expected = finish(tmp_path / "whole", bundle, simulator())
    left = 0

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    content = None
    while content is None:
        left = 45
        with simulator() as device:
            session = Session(SessionFolder(tmp_path / "cut", chosen(bundle)), device, TARGET)
            left += session.learned
            content = session.run(stop=stop)
    assert content == expected
    calls = {name: cost["calls"] for name, cost in content["footprint"]["instructions"].items()}
    assert calls == {"encode": TRAIN + TEST, "learn": TRAIN, "predict": TRAIN + 3 * TEST}
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_device_that_learns_otherwise_is_noticed(bundle, tmp_path):
    with HostDevice(bundle, 8192, head=HEAD) as device:
        session = Session(SessionFolder(tmp_path / "s", chosen(bundle)), device, TARGET)
        assert session.run(stop=lambda: session.learned == 30) is None
    other = HostDevice(bundle, 8192, head=replace(HEAD, learning_rate=0.4))
    with pytest.raises(SessionError, match="has not come to the head that it had after 30 samples; has its firmware"):
        finish(tmp_path / "s", bundle, other)


def test_few_samples_a_class(bundle, tmp_path):
    samples = finish(tmp_path / "s", bundle, samples_a_class=3)["samples"]
    assert np.bincount(samples["label"]).tolist() == [3, 3, 3, 3]
    assert len(set(samples["index"])) == 12


def test_a_finished_session_is_shown_again_and_its_folder_is_not_touched(bundle, tmp_path):
    content = finish(tmp_path / "s", bundle)
    before = contents(tmp_path / "s")
    assert SessionFolder(tmp_path / "s", chosen(bundle)).finished == json.loads(before["session.json"])
    assert finish(tmp_path / "s", bundle)["head_crc32"] == content["head_crc32"]
    assert contents(tmp_path / "s") == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "a session with seed 0, not 1; give --out another folder, or delete this one"),
        ({"epochs": 3}, "epochs 1, not 3"),
        ({"samples_a_class": 5}, "samples a class unset, not 5"),
        ({"image_crc32": "01234567"}, "not 01234567"),
        ({"head": replace(HEAD, batch=2)}, "head's batch 4, not 2"),
        ({"head": LATER}, "head's new classes 0, not 2"),
    ],
)
@pytest.mark.parametrize("limit", [30, None])
def test_a_session_of_other_settings_is_refused(bundle, tmp_path, changes, says, limit):
    folder = tmp_path / "s"
    with HostDevice(bundle, 8192, head=HEAD) as device:
        session = Session(SessionFolder(folder, chosen(bundle)), device, TARGET)
        session.run(stop=lambda: session.learned == limit)
    before = contents(folder)
    assert (CHECKPOINT in before) == (limit is not None)
    with pytest.raises(SessionError, match=says):
        SessionFolder(folder, chosen(bundle, **changes))
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["session.json", CHECKPOINT])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 9}', b"PK\3\4damaged"])
def test_a_folder_that_holds_something_else_is_refused(bundle, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SessionError, match="cannot read; give --out another folder"):
        SessionFolder(tmp_path, chosen(bundle))
    (tmp_path / name).rename(tmp_path / "notes.txt")
    with pytest.raises(SessionError, match="is not empty and no session"):
        SessionFolder(tmp_path, chosen(bundle))
    with pytest.raises(SessionError, match="is a file; give --out a folder"):
        SessionFolder(tmp_path / "notes.txt", chosen(bundle))
