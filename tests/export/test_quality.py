import numpy as np
import pytest
import torch
from blobs import blobs

from entropi.export import QualityError, export_encoder, ridge, sgd
from entropi.export.graph import from_module
from entropi.export.integer import Network, Tensor
from entropi.export.quality import Grade, grade, layer_noise, refuse
from entropi.host.data import Split


@pytest.fixture(params=[ridge, sgd], ids=lambda head: head.__name__.rpartition(".")[2])
def held_out(request):
    return request.param.held_out


def test_equal_features_cost_nothing(held_out):
    x, y = blobs(0, 3)
    same = grade(x, x, y, held_out)
    assert same.drop == 0 and same.images == 240 and same.float32 > 0.95
    assert same.error == pytest.approx(2**0.5 / 240)


def test_features_that_are_lost_cost_what_they_were_worth(held_out):
    x, y = blobs(0, 3)
    lost = grade(x, np.random.default_rng(0).normal(size=x.shape), y, held_out)
    assert lost.float32 > 0.95 and lost.int8 < 0.5
    assert lost.drop == pytest.approx(100 * (lost.float32 - lost.int8)) and lost.error < 0.06
    with pytest.raises(QualityError) as refused:
        refuse(lost, {"fine": 40.0, "bad": 3.04}, 1)
    assert f"costs the head that the device trains {lost.drop:.1f} ± " in str(refused.value)
    assert "most noise: bad (3.0 dB), fine (40.0 dB)" in str(refused.value)


@pytest.mark.parametrize(("drop", "error", "allowed"), [(0.01, 0.001, 1), (0.03, 0.019, 1.2), (-0.5, 0, 0)])
def test_what_chance_explains_is_not_refused(drop, error, allowed):
    refuse(Grade(100, 0.8, 0.8 - drop, error), {}, allowed)
    with pytest.raises(QualityError, match="on 100 held-out images"):
        refuse(Grade(100, 0.8, 0.8 - drop - 0.02, error), {}, 100 * drop - 100 * error + 1)


def test_noise_is_that_of_every_layer():
    class Two(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(torch.relu(x)).mean((2, 3))

    x = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)
    graph = from_module(Two(), (2, 4, 4))
    relu, tanh = np.maximum(x, 0), np.tanh(np.maximum(x, 0))
    network = Network(
        {
            1: Tensor(2, 4, 4, 0.02, -100, "relu"),
            2: Tensor(2, 4, 4, 0.5, 7, "tanh"),
            3: Tensor(2, 1, 1, 0.01, 0, "Identity"),
            4: Tensor(2, 4, 4, 0.01, 0, "tanh.part"),
        },
        0,
        3,
    )
    quantised = {
        1: np.round(relu / 0.02 - 100).astype(np.int8),
        2: np.round(tanh / 0.5 + 7).astype(np.int8),
        3: np.round(tanh.mean((2, 3), keepdims=True) / 0.01).astype(np.int8),
        4: np.zeros_like(tanh, np.int8),
    }
    noise = layer_noise(graph, x, network, quantised)
    assert set(noise) == {"relu", "tanh", "mean"}
    assert noise["relu"] > 35 > 15 > noise["tanh"] > 5
    error = tanh - (quantised[2].astype(float) - 7) * 0.5
    assert noise["tanh"] == pytest.approx(10 * np.log10((tanh**2).sum() / (error**2).sum()), abs=1e-3)


def test_an_export_that_costs_too_much_is_refused_and_leaves_the_folder_as_it_was(source, images, tmp_path):
    """A class is whether the feature that varies most is above its median."""
    pixels = images.random(400, source.input_shape).images
    normal = (pixels / 255 - np.reshape(source.mean, (3, 1, 1))) / np.reshape(source.std, (3, 1, 1))
    with torch.no_grad():
        features = source.encoder().eval()(torch.from_numpy(normal.astype(np.float32))).numpy()
    feature = features[:, features.std(axis=0).argmax()]
    labelled = Split(pixels, (feature > np.median(feature)).astype(np.int64))
    (tmp_path / "build").mkdir()
    for name in ("encoder.entropi", "kept"):
        (tmp_path / "build" / name).write_text("old")
    with pytest.raises(QualityError, match="--max-drop allows -100"):
        export_encoder(source, labelled, tmp_path / "build", max_drop=-100)
    files = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"encoder.entropi": "old", "kept": "old"}
    made = export_encoder(source, labelled, tmp_path / "build", max_drop=3)
    head = made.report["head"]
    assert head["images"] == 200 and head["float32"] > 0.8 and abs(head["drop"]) < 5
    assert abs(made.report["ridge_head"]["drop"]) < 5
    assert (tmp_path / "build" / "kept").exists()
    noise = made.report["signal_to_noise_db"]
    assert len(noise) >= 8 and all(10 < decibels < 70 for decibels in noise.values())
