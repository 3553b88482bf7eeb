"""entropi-export on what is no ladder: somebody's int8 model, and somebody's torch module."""

from __future__ import annotations

import json
import textwrap

import numpy as np
import pytest
from safetensors.torch import save_file

from entropi.device import Bundle
from entropi.host import cli

NETWORK = """
import torch
from torch import nn

def encoder(wide=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, wide, 3, 2, 1), nn.BatchNorm2d(wide), nn.ReLU(),
        nn.Conv2d(wide, 12, 3, 2, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )

def unsupported():
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding_mode="reflect", padding=1), nn.Softplus(), nn.Flatten())

def broken():
    return nn.Linear(2)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with mynets.py, where a user works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mynets.py").write_text(textwrap.dedent(NETWORK))
    return tmp_path


def test_somebodys_model_is_exported_and_checked(run, small_demo, tmp_path):
    model = small_demo.folder / "build" / "chosen" / "encoder_int8.tflite"
    out = tmp_path / "build"
    status, text, err = run(model, "--out", out, "--json", main=cli.export_main)
    assert status == 0, err
    content = json.loads(text)
    assert (content["name"], content["weight_bits"]) == ("encoder_int8", 8)
    assert content["checks"]["tflite_micro_images_equal_byte_for_byte"] == 100
    assert not (out / "encoder.onnx").exists() and (out / "encoder_int8.tflite").read_bytes() == model.read_bytes()
    preprocessing = Bundle.open(out).preprocessing
    shades = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    np.testing.assert_array_equal(preprocessing(np.repeat(shades, 3, 0))[0].ravel(), np.arange(-128, 128))

    status, text, err = run("check", out, "--json", main=cli.export_main)
    assert status == 0, err
    assert json.loads(text)["passed"]
    (out / "golden.npz").write_bytes((small_demo.folder / "build" / "dense" / "golden.npz").read_bytes())
    status, text, _ = run("check", out, main=cli.export_main)
    assert status == 1 and "Failed" in text


def test_somebodys_module_is_exported_with_its_weights(run, here):
    import mynets

    module = mynets.encoder()
    module[0].weight.data[3], module[0].bias.data[3] = 0, -1  # nothing is left of this channel after ReLU
    save_file(module.state_dict(), here / "mine.safetensors")
    arguments = ("mynets:encoder", "--target", "builtin:digits8x8", "--weights", "mine.safetensors", "--mean", "0.2")
    arguments += ("--max-drop", "5")
    options = ("--weight-bits", "6", "--train-signatures", "--out", "build", "--json")
    status, text, err = run(*arguments, *options, main=cli.export_main)
    assert status == 0, err
    content = json.loads(text)
    assert content["weight_bits"] == 6
    assert content["preprocessing"]["mean"] == [0.2] and content["preprocessing"]["std"] == [0.5]
    assert content["head"]["images"] == 1024 and content["head"]["float32"] > 0.6
    assert content["removed"]["constant"]["channels"] >= 1
    assert (here / "build" / "encoder_train.tflite").exists()

    save_file(mynets.encoder(9).state_dict(), here / "other.safetensors")
    (here / "no.safetensors").write_text("junk")
    for weights, says in (
        ("other.safetensors", "0.bias is [9] and not [8], 0.weight is [9, 1, 3, 3] and not [8, 1, 3, 3], 1.bias is"),
        ("no.safetensors", "cannot be read as safetensors"),
        ("none.safetensors", "cannot be read as safetensors"),
    ):
        status, _, err = run(*arguments[:3], "--weights", weights, "--out", "b", main=cli.export_main)
        assert status == 1 and says in err and not (here / "b").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("mynets:encoder",), "mynets:encoder needs images that set its integer ranges; give --target"),
        (("mynets:unsupported", "--target", "builtin:digits8x8"), "Softplus is not supported; replace it"),
        (("mynets:unsupported", "--target", "builtin:digits8x8"), "padding_mode='reflect'; use zero padding"),
        (("mynets:broken", "--target", "builtin:digits8x8"), "TypeError"),
        (("mynets:nothing", "--target", "builtin:digits8x8"), "mynets has no 'nothing'"),
        (("mynets:encoder", "--target", "builtin:digits8x8", "--std", "1,2"), "--std has 2 values and the images 1"),
        (("missing.tflite",), "missing.tflite is no file"),
        (("mynets:encoder", "--std", "0"), "--std '0' is out of range; every number has to be finite and above 0"),
        (("mynets:encoder", "--mean", "nan"), "--mean 'nan' is out of range; every number has to be finite"),
        (("mynets.py.tflite",), "no TFLite model, or a damaged one"),
        (("nowhere",), "nowhere is no ladder"),
        (("nowhere", "--optimize", "speed", "--board", "redpill"), "no board is named 'redpill'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(run, here, arguments, says):
    (here / "mynets.py.tflite").write_text(NETWORK)
    before = sorted(path.name for path in here.iterdir() if path.name != "__pycache__")
    status, out, err = run(*arguments, "--out", "build", main=cli.export_main)
    assert status == 1 and out == "" and says in " ".join(err.split())
    assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == before


def test_options_that_mean_nothing_are_wrong_use(run, here):
    for arguments in (
        ("a.tflite", "--rung", "3"),
        ("a.tflite", "--weights", "w"),
        ("a:b", "--rung", "3"),
        ("runs", "--mean", "0.5"),
        ("a:b", "--mean", "half"),
        ("runs", "--optimize", "taste"),
        ("runs", "--weight-bits", "9"),
        ("runs", "--board", "bluepill"),
    ):
        assert run(*arguments, "--out", "build", main=cli.export_main)[0] == 2
