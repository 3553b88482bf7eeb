"""`entropi depth`, and its steps through `entropi-export` onto the emulated board."""

from __future__ import annotations

import json

import pytest

from entropi.host import cli
from entropi.host.depth.reduction import Reduction

NETWORK = """
from torch import nn

def small(classes):
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
        nn.Conv2d(12, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, classes),
    )
"""
OPTIONS = ("--method", "easier", "--arch", "depthnets:small", "--source", "builtin:digits", "--preset", "smoke")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with depthnets.py, where a user works."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "depthnets.py").write_text(NETWORK)
    return tmp_path


def test_depth_then_export_then_the_emulated_board(run, here):
    status, out, err = run("depth", *OPTIONS, "--max-drop", "100", "--samples-step", "128", "--out", "runs/d", "--json")
    assert status == 0, err
    content = json.loads(out)
    assert [step["removed"] for step in content["steps"]] == [0, 1, 2] and content["best"] == 2
    assert [step["layers"] for step in content["steps"]] == [3, content["steps"][1]["layers"], 2]
    assert content["merges"][0]["layers"] == ["0", "3"] and content["error"] == 0

    built = {}
    for rung in (0, "best"):
        arguments = ("runs/d", "--rung", rung, "--max-drop", "100", "--out", f"build/{rung}", "--json")
        status, out, err = run(*arguments, main=cli.export_main)
        assert status == 0, err
        built[rung] = json.loads(out)
    assert (built[0]["name"], built["best"]["step"]) == ("depthnets:small-easier00", 2)
    assert built["best"]["macs"] < built[0]["macs"] and built["best"]["image_bytes"] < built[0]["image_bytes"]
    assert built["best"]["dense_macs"] <= Reduction.open("runs/d").best.cost["dense_macs"]
    status, out, err = run("check", "build/best", "--json", main=cli.export_main)
    assert status == 0 and json.loads(out)["passed"], err

    before = {file.name: file.read_bytes() for file in (here / "runs/d").iterdir()}
    status, out, err = run("depth", "--out", "runs/d")
    assert status == 0 and "step 2 is the last within 100 points" in out, err
    assert "merged: 0, 3:" in out
    assert before == {file.name: file.read_bytes() for file in (here / "runs/d").iterdir()}
    arguments = ("--from", "runs/d", "--method", "egp", "--rounds", "1", "--preset", "smoke", "--samples-step", "128")
    status, out, err = run("depth", *arguments, "--at", "1", "--max-drop", "100", "--out", "runs/e", "--json")
    assert status == 0, err
    first = json.loads(out)["steps"][0]
    assert {**first, "removed": 1, "step": 1, "drop": content["steps"][1]["drop"]} == content["steps"][1]
    status, _, err = run("depth", "--from", "runs/d", "--at", "3", "--out", "runs/f")
    assert status == 1 and "--at 3 is not in runs/d; give a number from 0 to 2" in err
    status, _, err = run("depth", "--out", "runs/d", "--seed", "1")
    assert status == 1 and "seed = 0 and is now asked for 1" in err.strip().splitlines()[-1]


def test_depth_then_a_ladder_then_export(run, here):
    status, _, err = run("depth", *OPTIONS, "--max-drop", "100", "--samples-step", "128", "--out", "runs/d")
    assert status == 0, err
    arguments = ("--preset", "smoke", "--samples-rung", "128", "--stop", "0.1", "--out", "runs/l", "--json")
    status, out, err = run("ladder", "--from", "runs/d", *arguments)
    assert status == 0, err
    rungs = json.loads(out)["rungs"]
    step = Reduction.open("runs/d").best
    assert (rungs[0]["alpha"], rungs[0]["nonzeros"]) == (1, step.cost["nonzeros"]) and step.index == 2
    status, out, err = run("select", "runs/l", "--target", "builtin:digits", "--bootstrap", "0", "--json")
    assert status == 0 and len(json.loads(out)["rungs"]) == len(rungs), err
    status, out, err = run(
        "runs/l", "--rung", "1", "--max-drop", "100", "--out", "build/l", "--json", main=cli.export_main
    )
    assert status == 0, err
    built = json.loads(out)
    assert built["name"] == "depthnets:small-easier02-rung01" and built["nonzeros"] <= rungs[1]["nonzeros"]
    status, out, err = run("ladder", "--out", "runs/l")
    assert status == 0 and "rung" in out, err
    status, _, err = run("ladder", "--from", "runs/d", "--at", "3", "--out", "runs/f")
    assert status == 1 and "--at 3 is not in runs/d; give a number from 0 to 2" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--method", "shallow"), "choose from egp, nepenthe, easier, lacoot"),
        (("--zeta", "0.5"), "easier has no parameter zeta"),
        (("--preset", "quick"), "choose from paper, short, smoke, demo"),
        (("--method", "lacoot", "--arch", "vgg16_bn", "--source", "builtin:digits"), "has no block with a shortcut"),
        (("--from", "nowhere"), "nowhere is no ladder"),
        (("--source", "builtin:digits8x8"), "has 1 channels"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, here, arguments, says):
    status, out, err = run("depth", "--out", "new", *arguments)
    last = err.strip().splitlines()[-1]
    assert status == 1 and out == "" and last.startswith("error: ") and says in last
    assert not (here / "new").exists()


def test_wrong_use_is_status_2(run, here):
    assert run("depth", "--at", "3", "--out", "new")[0] == run("ladder", "--at", "3", "--out", "new")[0] == 2
    assert run("depth", "--max-drop", "-1", "--out", "new")[0] == 2


def test_a_step_that_is_not_there(run, here):
    (here / "runs").mkdir()
    (here / "runs" / "depth.json").write_text("{}")
    status, _, err = run("runs", "--out", "build", main=cli.export_main)
    assert status == 1 and "depth.json is damaged" in err
