import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from entropi.host import data
from entropi.host.depth import methods, schedules, signs
from entropi.host.depth.methods import METHODS
from entropi.host.depth.reduction import DEPTH, Reduction
from entropi.host.networks import graph
from entropi.host.networks.fold import summary
from entropi.host.networks.inference import accuracy
from entropi.host.training import pruning
from entropi.host.training.ladder import Ladder
from entropi.host.training.runs import RunError
from entropi.host.training.schedule import Schedule

SCRIPT = Path(__file__).with_name("reduced.py")
ROUNDS = {"egp": 3, "nepenthe": 3, "easier": 2, "lacoot": 1}  # steps after the first that the tests make


@pytest.fixture(scope="module")
def reduced():
    """The module reduced.py; beside it lies tiny_nets.py."""
    sys.path.insert(0, str(SCRIPT.parent))
    import reduced

    yield reduced
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def reductions(reduced, tiny_source, tmp_path_factory):
    """One of every method, that no test may change."""
    folder = tmp_path_factory.mktemp("reductions")
    return {name: reduced.build(name, rounds, folder / name, tiny_source) for name, rounds in ROUNDS.items()}


@pytest.mark.parametrize("method", ROUNDS)
def test_every_step_is_what_its_entry_says(reductions, tiny_source, method):
    reduction = reductions[method]
    assert reduction.complete and len(reduction) == 1 + ROUNDS[method]
    again = Reduction.open(reduction.path)
    assert [step.metadata for step in again] == [step.metadata for step in reduction]
    assert again.method == reduction.method and again.schedule == reduction.schedule
    count = len(tiny_source.test)
    for step in reduction:
        assert step.name == f"resnet8-{method}{step.index:02d}"
        model = step.model()
        assert step.accuracy == pytest.approx(accuracy(model, tiny_source.test), abs=1.5 / count)
        assert summary(step.encoder(), step.input_shape) == step.cost
        whole = len(graph.rectifiers(reduction[0].model()))
        switching = sum(value["entropy"] > 0 for value in step.metadata["rectifiers"].values())
        assert step.removed == whole - switching and step.metadata["rectifiers"].keys() == {
            node.name for node in graph.rectifiers(model)
        }
        with torch.no_grad():
            images = torch.randn(2, 3, 32, 32)
            encoder, last = step.encoder(), model.get_submodule("fc")
            torch.testing.assert_close(last(encoder(images)), model(images), rtol=1e-3, atol=1e-4)


def test_easier_removes_the_rectifier_of_lowest_entropy_each_round(reductions):
    reduction = reductions["easier"]
    for before, after in zip(reduction, reduction[1:], strict=False):
        values = {name: value["entropy"] for name, value in before.metadata["rectifiers"].items()}
        assert after.edits[-1].node == min(values, key=values.__getitem__)
        assert after.edits[:-1] == before.edits and after.removed == before.removed + 1


@pytest.mark.parametrize("method", ["egp", "nepenthe"])
def test_pruned_weights_stay_zero_through_retraining(reductions, method):
    before = None
    for step in reductions[method]:
        weights = pruning.prunable(step.model())
        if before:
            assert pruning.nonzeros(weights) < pruning.nonzeros(before)
            assert not any(((w != 0) & (before[name] == 0)).any() for name, w in weights.items())
        before = weights


def test_what_a_round_measures_is_over_all_training_images(reductions, reduced, tiny_source):
    step = reductions["nepenthe"][1]
    order = np.random.default_rng(3).permutation(len(tiny_source.train))
    training = tiny_source.train[np.sort(order[round(0.1 * len(order)) :])]
    found = signs.measure(step.model(), training, batch=17)
    for name, value in step.metadata["rectifiers"].items():
        assert found[name].entropy("drop", "all") == pytest.approx(value["entropy"], abs=1e-4)
        assert found[name].nonlinearity.mean() == pytest.approx(value["nonlinearity"], abs=1e-4)


def test_lacoot_drops_whole_blocks_and_does_not_retrain(reductions):
    whole, less = reductions["lacoot"]
    assert less.cost["dense_macs"] < whole.cost["dense_macs"] and less.cost["depth"] == whole.cost["depth"] - 2
    before, after = whole.model().state_dict(), less.model().state_dict()
    assert after.keys() < before.keys() and all(torch.equal(after[name], before[name]) for name in after)
    assert less.metadata["exhausted"] and list(whole.metadata["distances"]) == ["stacks.0"]
    assert whole.metadata["distances"]["stacks.0"] > 0


def test_lacoots_penalty_brings_input_and_output_of_a_block_together(reduced, tiny_source, tmp_path):
    schedule, distances = dataclasses.replace(reduced.SCHEDULE, epochs_dense=12), []
    for weight in (0.0, 20.0):
        folder = tmp_path / str(weight)
        whole = reduced.build("lacoot", 1, folder, tiny_source, schedule=schedule, lambda_=weight)[0]
        distances.append(whole.metadata["distances"]["stacks.0"])
    apart, close = distances
    assert close < 0.9 * apart


def test_killed_anywhere_the_next_run_ends_with_the_same_bytes(reductions, tmp_path):
    method, events = "easier", {
        "rename:checkpoint.safetensors": 0,  # the checkpoint of the first epoch lies there under its temporary name
        "step:4": 0,  # from the checkpoint on
        "rename:depth.json": 0,  # step 0 is on the disk, depth.json does not know it yet
        "remove:checkpoint.safetensors": 1,
        "rename:step-01.safetensors": 1,
    }  # fmt: skip
    folder, rounds = tmp_path / "reduction", ROUNDS[method]
    command = [sys.executable, SCRIPT, method, str(rounds), folder, *events, "never:"]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    undisturbed = reductions[method]
    expected = [f"{event} -9 {steps}" for event, steps in events.items()] + [f"never: 0 {len(undisturbed)}"]
    assert process.stdout.splitlines() == expected, process.stderr
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in undisturbed.path.iterdir())
    for step, same in zip(Reduction.open(folder), undisturbed, strict=True):
        assert step.path.read_bytes() == same.path.read_bytes(), step.name
        assert {**step.metadata, "seconds": 0} == {**same.metadata, "seconds": 0}


def test_a_step_that_drops_too_far_ends_it_and_the_one_before_is_best(reductions, tmp_path):
    folder = shutil.copytree(reductions["easier"].path, tmp_path / "copy")
    content = json.loads((folder / DEPTH).read_text())
    content["settings"] |= {"max_drop": 10.0, "parameters": {**content["settings"]["parameters"], "rounds": None}}
    for entry, value in zip(content["steps"], (0.8, 0.7, 0.5), strict=True):
        entry["validation_accuracy"] = value
    (folder / DEPTH).write_text(json.dumps(content))
    opened = Reduction.open(folder)
    assert opened.complete and opened.best.index == 1 and opened.drop(opened[1]) == 10
    content["steps"].pop()
    (folder / DEPTH).write_text(json.dumps(content))
    assert not Reduction.open(folder).complete


def test_begins_with_a_rung_and_keeps_its_zeros(reduced, tiny_ladder, tiny_source, tmp_path):
    rung = tiny_ladder[1]
    reduction = reduced.build("easier", 1, tmp_path, tiny_source, start=rung)
    assert reduction.settings["start"] == {"rung": 1, "sha256": rung.metadata["sha256"]}
    for name, value in reduction[0].model().state_dict().items():
        assert torch.equal(value, rung.model().state_dict()[name]), name
    weights = pruning.prunable(reduction[1].model())
    assert pruning.nonzeros(weights) <= rung.nonzeros
    assert len(reduced.build("easier", 1, tmp_path, tiny_source)) == 2  # the rung is needed no more
    with pytest.raises(RunError, match=r"was begun with start\.rung = 1"):
        reduced.build("easier", 1, tmp_path, tiny_source, start=tiny_ladder[2])
    with pytest.raises(ValueError, match="resnet8-rung01 is resnet8 for 36 classes and 3x32x32 images"):
        reduced.build("easier", 1, tmp_path / "other", data.load("builtin:digits"), start=rung)


def test_methods_share_one_trained_network(reductions, reduced, tiny_source, tmp_path):
    whole = reductions["easier"][0]
    reduction = reduced.build("egp", 1, tmp_path / "egp", tiny_source, start=whole)
    assert reduction.settings["start"] == {"step": 0, "sha256": whole.metadata["sha256"]}
    first, pruned = reduction
    assert first.path.read_bytes() == whole.path.read_bytes()
    same = ("validation_accuracy", "accuracy", "cost", "removed", "edits")
    assert all(getattr(first, name) == getattr(whole, name) for name in same)
    assert pruning.nonzeros(pruning.prunable(pruned.model())) < pruning.nonzeros(pruning.prunable(first.model()))


def test_a_later_step_hands_on_its_edits(reductions, reduced, tiny_source, tmp_path):
    step = reductions["lacoot"][1]  # a block is left out
    reduction = reduced.build("easier", 1, tmp_path, tiny_source, start=step)
    first, shallower = reduction
    assert first.edits == step.edits == shallower.edits[:-1] and first.cost == step.cost
    assert (first.removed, shallower.removed) == (0, 1)
    images = torch.randn(2, *step.input_shape)
    with torch.no_grad():
        assert torch.equal(first.model()(images), step.model()(images))
        assert shallower.model()(images).shape == (2, len(step.classes))
    assert [s.metadata for s in Reduction.open(tmp_path)] == [s.metadata for s in reduction]
    assert len(reduced.build("easier", 1, tmp_path, tiny_source)) == 2
    with pytest.raises(RunError, match=r"was begun with start\.step = 1 and is now asked for 0"):
        reduced.build("easier", 1, tmp_path, tiny_source, start=reductions["lacoot"][0])
    with pytest.raises(ValueError, match=r"resnet8-lacoot01 has no block with a shortcut"):
        reduced.build("lacoot", 1, tmp_path / "other", tiny_source, start=step)


@pytest.mark.parametrize(("method", "index"), [("lacoot", 1), ("nepenthe", 3), ("easier", 2)])
def test_a_ladder_prunes_a_step_further(reductions, reduced, tiny, tiny_source, tmp_path, method, index):
    step = reductions[method][index]
    options = {"arch": "resnet8", "source": tiny_source, "schedule": tiny.SCHEDULE, "seed": 3, "threads": 1}
    built = Ladder.build(tmp_path / "built", start=step, **options)
    ladder = Ladder.open(shutil.move(tmp_path / "built", tmp_path / "ladder"))
    assert ladder.complete and [rung.metadata for rung in ladder] == [rung.metadata for rung in built]
    first = ladder[0]
    assert first.path.read_bytes() != step.path.read_bytes() and first.name == f"resnet8-{method}0{index}-rung00"
    assert (first.alpha, first.nonzeros, first.source_accuracy) == (1, step.cost["nonzeros"], step.accuracy)
    images = torch.randn(2, *step.input_shape)
    with torch.no_grad():
        assert torch.equal(first.encoder()(images), step.encoder()(images))
    left = pruning.nonzeros(pruning.prunable(step.model()))
    for rung, share in zip(ladder, tiny.SCHEDULE.shares(), strict=True):
        weights = pruning.prunable(rung.model())
        assert pruning.nonzeros(weights) == round(share * left) and rung.alpha == pytest.approx(share, abs=1 / left)
        zeros = {name: weight == 0 for name, weight in pruning.prunable(step.model()).items()}
        assert all((weight[zeros[name]] == 0).all() for name, weight in weights.items())
        cost = summary(rung.encoder(), rung.input_shape)
        assert rung.nonzeros == cost["nonzeros"] and cost["layers"] <= step.cost["layers"]
        count = len(tiny_source.test)
        assert rung.source_accuracy == pytest.approx(accuracy(rung.model(), tiny_source.test), abs=1.5 / count)
    assert len(Ladder.build(ladder.path, **options)) == len(ladder)  # the step is needed no more
    with pytest.raises(RunError, match=rf"was begun with start\.step = {index} and is now asked for 0"):
        Ladder.build(ladder.path, start=reductions[method][0], **options)
    again = reduced.build("easier", 1, tmp_path / "again", tiny_source, start=ladder[-1])
    assert again[1].edits[: len(step.edits)] == step.edits and again[0].cost["nonzeros"] == ladder[-1].nonzeros


def test_a_ladder_refuses_a_step_of_another_network(reductions, tiny, tmp_path):
    options = {"schedule": tiny.SCHEDULE, "threads": 1, "start": reductions["easier"][0]}
    with pytest.raises(ValueError, match="resnet8-easier00 is resnet8 for 36 classes and 3x32x32 images"):
        Ladder.build(tmp_path / "new", arch="resnet8", source=data.load("builtin:digits"), **options)
    assert not (tmp_path / "new").exists()


def test_a_step_that_learned_from_the_judging_images_is_refused(
    reductions, reduced, tiny_source, tiny_ladder, tmp_path
):
    step = reductions["easier"][0]
    with pytest.raises(ValueError, match=r"resnet8-easier00 was trained on images that would judge .* its seed, 3"):
        reduced.build("egp", 1, tmp_path / "new", tiny_source, start=step, seed=4)
    other = data.Dataset("other", tiny_source.classes, tiny_source.test, tiny_source.test)
    with pytest.raises(ValueError, match="start with its source"):
        reduced.build("egp", 1, tmp_path / "new", other, start=step)
    assert not (tmp_path / "new").exists()
    folder = shutil.copytree(reductions["easier"].path, tmp_path / "copy")
    with pytest.raises(RunError, match="start = None and is now asked for {'rung': 0"):
        reduced.build("easier", ROUNDS["easier"], folder, tiny_source, start=tiny_ladder[0])


def test_an_approximate_merge_says_how_wrong_it_is(reduced, tiny_source, tmp_path):
    reduction = reduced.build("easier", 1, tmp_path, tiny_source, approximate=True, arch="tiny_nets:narrow")
    folded = reduction[1].metadata["fold"]
    assert [merge["exact"] for merge in folded["merges"]] == [False] and 0 < folded["error"] < 1
    assert reduction[1].cost["nonzero_macs"] < reduction[0].cost["nonzero_macs"]
    assert len(reduction[1].folded().merges) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_index_is_named(tmp_path, content):
    (tmp_path / DEPTH).write_text(content)
    with pytest.raises(RunError, match=r"depth\.json (is damaged|has format)") as refused:
        Reduction.open(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_damaged_step_is_named(reductions, tmp_path):
    folder = shutil.copytree(reductions["easier"].path, tmp_path / "copy")
    file = folder / "step-01.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=r"step-01\.safetensors is damaged.*SHA-256"):
        Reduction.open(folder)[1].model()
    file.write_bytes(content[:-1000])
    with pytest.raises(RunError, match=r"step-01\.safetensors is damaged: it has"):
        Reduction.open(folder)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("easier", {"arch": "resnet19"}, "choose from resnet18"),
        ("shallow", {}, "choose from egp, nepenthe, easier, lacoot"),
        ("lacoot", {"arch": "vgg16_bn"}, "vgg16_bn has no block with a shortcut"),
        ("easier", {"arch": "tiny_nets:linear"}, "has no rectifier that could be removed"),
        ("easier", {"max_drop": -1.0}, "max_drop is -1.0"),
        ("easier", {"max_drop": float("nan")}, "max_drop is nan"),
        ("easier", {"source": "builtin:digits8x8"}, "has 1 channels and resnet8 takes 3"),
        ("easier", {"source": "builtin:nothing"}, "choose from builtin:characters"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(reduced, tiny_source, tmp_path, method, options, message):
    source = options.pop("source", tiny_source)
    with pytest.raises(ValueError, match=message) as refused:
        reduced.build(method, 1, tmp_path / "new", source, **options)
    assert "\n" not in str(refused.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed = 3 and is now asked for 4"),
        ({"max_drop": 2.0}, "max_drop = 100.0 and is now asked for 2.0"),
        ({"schedule": Schedule(epochs_rung=9)}, "schedule.epochs_dense"),
        ({"approximate": True}, "approximate = False"),
        ({"zero": "off"}, "parameters.zero = 'on' and is now asked for 'off'"),
    ],
)
def test_other_settings_are_refused(reduced, reductions, tiny_source, change, message):
    with pytest.raises(RunError, match=message):
        reduced.build("easier", ROUNDS["easier"], reductions["easier"].path, tiny_source, **change)


def test_the_folder_of_a_ladder_is_refused(reduced, tiny_ladder, tiny_source):
    before = {path: path.read_bytes() for path in tiny_ladder.path.iterdir()}
    with pytest.raises(RunError, match=r"holds another run, ladder\.json; give --out another folder"):
        reduced.build("easier", 1, tiny_ladder.path, tiny_source)
    assert before == {path: path.read_bytes() for path in tiny_ladder.path.iterdir()}


def test_schedules_leave_out_what_only_a_ladder_reads():
    assert not set(schedules.settings(schedules.schedule("paper"))) & set(schedules.LADDER_ONLY)
    with pytest.raises(ValueError, match="choose from paper, short, smoke, demo"):
        schedules.schedule("long")
    assert methods.method("easier", "resnet18").changed() == METHODS["easier"]
