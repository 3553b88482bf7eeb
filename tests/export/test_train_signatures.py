"""encoder_train.tflite: LiteRT learns what the device's C learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from entropi.device import Bundle, DeviceError, HeadConfig, HostDevice
from entropi.device.bundle import Preprocessing
from entropi.export import train_signatures
from entropi.export.image import Centering, write_image
from entropi.export.integer import Network, Tensor

FEATURES = 24
HEAD = HeadConfig(classes=5, batch=4, bytes_per_parameter=8, learning_rate=0.3, momentum=0.9, weight_decay=0.01)


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 features around one mean a class, and labels."""
    means = np.random.default_rng(0).integers(-60, 60, (HEAD.classes, FEATURES))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, HEAD.classes, count).astype(np.int32)
    return (means[labels] + rng.integers(-60, 60, (count, FEATURES))).astype(np.int8), labels


CENTERING = Centering.of(samples(200, 1)[0])


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_signatures.train_signatures(CENTERING, HEAD, samples(200, 1)[0])


@pytest.fixture
def run(model):
    """A fresh interpreter's signatures, by name."""
    return Interpreter(model_content=model).get_signature_runner


def device() -> HostDevice:
    """The C head with the same centring, a step after as many samples as are learned before flush."""
    image, _ = write_image(Network({0: Tensor(FEATURES, 1, 1, 1.0, 0)}, 0, 0), CENTERING)
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,) * FEATURES, (1.0,) * FEATURES, 1.0, 0))
    return HostDevice(bundle, "64KiB", head=replace(HEAD, batch=32))


def learn(run, c: HostDevice, features: np.ndarray, labels: np.ndarray) -> None:
    """One step on both, whose losses have to agree."""
    losses = [c.learn_features(x, int(y)) for x, y in zip(features, labels, strict=True)]
    c.flush()
    assert run("train")(features=features, labels=labels)["loss"] == pytest.approx(np.mean(losses), rel=1e-4, abs=1e-6)


def parameters(run) -> np.ndarray:
    found = run("get_weights")()
    return np.r_[found["weights"].ravel(), found["biases"]]


def agree(run, c: HostDevice) -> None:
    expected = c.head()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(parameters(run), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_it_learns_what_the_device_learns_from_batches_of_any_size(run):
    run("init")()
    c, (features, labels) = device(), samples(400, 2)
    start = 0
    for size in (1, 4, 7, 2, 30, 1) * 8:
        learn(run, c, features[start : start + size], labels[start : start + size])
        start += size
    agree(run, c)

    unseen, classes = samples(200, 3)
    probabilities = run("infer")(features=unseen)["probabilities"]
    predicted = [c.predict_features(x) for x in unseen]
    best = np.array([label for label, _ in predicted])
    np.testing.assert_allclose(probabilities[range(200), best], [p for _, p in predicted], atol=1e-4)
    assert (probabilities.argmax(axis=1) == best).mean() > 0.99
    assert (best == classes).mean() > 0.9
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_a_head_that_was_kept_learns_on_as_a_restored_one_of_the_device(run, model):
    c = device()
    for seed in range(3):
        learn(run, c, *samples(8, seed))
    c.save()
    kept = run("get_weights")()
    c.reset()
    c.restore()

    again = Interpreter(model_content=model).get_signature_runner
    assert again("set_weights")(**kept)["classes"] == [HEAD.classes]
    for name, values in again("get_weights")().items():
        np.testing.assert_array_equal(values, kept[name])
    for seed in range(3, 6):
        learn(again, c, *samples(8, seed))
    agree(again, c)


def test_init_starts_again(run):
    features, labels = samples(20, 4)
    first = run("train")(features=features, labels=labels)["loss"], parameters(run)
    assert first[0] == pytest.approx(np.log(HEAD.classes))
    run("train")(features=features, labels=labels)
    assert run("init")()["classes"] == [HEAD.classes]
    assert not parameters(run).any()
    np.testing.assert_allclose(run("infer")(features=features)["probabilities"], 1 / HEAD.classes)
    again = run("train")(features=features, labels=labels)["loss"], parameters(run)
    assert again[0] == first[0]
    np.testing.assert_array_equal(again[1], first[1])


@pytest.mark.parametrize("label", [-1, HEAD.classes])
def test_a_label_that_is_no_class_is_refused_and_nothing_learned(run, label):
    features, _ = samples(2, 5)
    run("init")()
    with pytest.raises(RuntimeError, match="index out of bounds"):
        run("train")(features=features, labels=np.array([0, label], np.int32))
    assert not parameters(run).any()


def test_a_loss_that_is_not_finite_takes_no_step(run):
    huge = np.where(np.arange(HEAD.classes)[:, None] % 2, 3e38, -3e38) * np.ones((1, FEATURES))
    run("set_weights")(weights=huge.astype(np.float32), biases=np.zeros(HEAD.classes, np.float32))
    before = parameters(run)
    features, labels = samples(4, 6)
    assert not np.isfinite(run("train")(features=features, labels=labels)["loss"])
    np.testing.assert_array_equal(parameters(run), before)


def test_it_needs_nothing_but_builtin_operators(model):
    content = schema.ModelT.InitFromPackedBuf(model, 0)
    assert [code.customCode for code in content.operatorCodes if code.customCode] == []
    assert len(model) < 40_000


def test_a_head_that_differs_is_named():
    found = {
        "losses": np.ones(3),
        "probabilities": np.full((3, 2), 0.5),
        "weights": np.ones((2, 4)),
        "biases": np.ones(2),
    }
    found |= {f"restored_{name}": values for name, values in found.items() if name != "losses"}
    expected = {"losses": np.ones(3), "weights": np.ones((2, 4)), "biases": np.ones(2), "best": np.array([0, 1, 1])}
    expected["probability"] = np.full(3, 0.5)
    train_signatures._compare(dict(found), dict(expected))
    with pytest.raises(train_signatures.TrainError, match="its biases differ from those of the device's head by 0.33"):
        train_signatures._compare(dict(found), expected | {"biases": np.array([1.0, 1.5])})
    with pytest.raises(train_signatures.TrainError, match="its weights differ .* by nan"):
        train_signatures._compare(found | {"weights": np.full((2, 4), np.nan)}, dict(expected))
    with pytest.raises(train_signatures.TrainError, match="its weights changed between get_weights and set_weights"):
        train_signatures._compare(found | {"restored_weights": np.zeros((2, 4))}, dict(expected))


def test_a_head_out_of_range_is_refused_first():
    with pytest.raises(DeviceError, match="E_ARGUMENT"):
        train_signatures.train_signatures(CENTERING, replace(HEAD, classes=1), samples(9, 1)[0])
