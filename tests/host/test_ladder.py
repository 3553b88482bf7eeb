import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from entropi.host import cli, data
from entropi.host.data import characters
from entropi.host.networks.inference import accuracy
from entropi.host.training import engine, pruning
from entropi.host.training.ladder import Ladder, check_parts
from entropi.host.training.runs import RunError
from entropi.host.training.schedule import PRESETS, Schedule
from entropi.host.training.trainer import TrainingError

TINY = Path(__file__).with_name("tiny.py")


def test_rungs_keep_exactly_their_share_and_are_nested(tiny_ladder, tiny_source):
    assert tiny_ladder.complete and len(tiny_ladder) == 3
    assert [rung.alpha for rung in tiny_ladder] == pytest.approx([1, 0.2, 0.04], rel=1e-4)
    before = None
    for rung in tiny_ladder:
        weights = pruning.prunable(rung.model())
        total = sum(w.numel() for w in weights.values())
        assert rung.nonzeros == pruning.nonzeros(weights) == round(rung.alpha * total)
        if before:
            assert not any(((w != 0) & (before[name] == 0)).any() for name, w in weights.items())
        before = weights
        assert rung.source_accuracy == accuracy(rung.model(), tiny_source.test)


def test_a_rung_says_what_export_needs(tiny_ladder):
    rung = tiny_ladder[1]
    assert rung.name == "resnet8-rung01"
    assert (rung.mean, rung.std, rung.input_shape) == ((0.5,) * 3, (0.5,) * 3, (3, 32, 32))
    assert len(rung.classes) == 36
    model, encoder = rung.model(), rung.encoder()
    assert not model.training and not encoder.training
    with torch.no_grad():
        assert encoder(torch.zeros(2, 3, 32, 32)).shape == (2, 64)
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 36)


def test_opening_again_reads_the_same_ladder(tiny_ladder):
    again = Ladder.open(tiny_ladder.path)
    assert [rung.metadata for rung in again] == [rung.metadata for rung in tiny_ladder]
    assert again.schedule == tiny_ladder.schedule and again.threads == 1
    assert sorted(p.name for p in again.path.iterdir()) == [
        "ladder.json", *(f"rung-0{i}.safetensors" for i in range(3)),
    ]  # fmt: skip
    assert again[2].path.stat().st_size < again[0].path.stat().st_size / 4


def test_building_leaves_the_callers_threads_and_random_state_alone(tiny_ladder, tiny, tiny_source):
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    tiny_ladder[0].encoder()
    tiny.build(tiny_ladder.path, tiny_source)
    assert torch.get_num_threads() == threads and torch.equal(torch.random.get_rng_state(), state)


def test_killed_anywhere_the_next_run_ends_with_the_same_bytes(tiny_ladder, tmp_path):
    folder = tmp_path / "ladder"
    events = {
        "step:1": 0,  # nothing saved but ladder.json
        "rename:checkpoint.safetensors": 0,  # the checkpoint of the first epoch lies there under its temporary name
        "step:5": 0,  # from the checkpoint on
        "rename:ladder.json": 0,  # rung 0 is on the disk, ladder.json does not know it yet
        "remove:checkpoint.safetensors": 1,  # rung 0 is finished, its checkpoint is still there
        "rename:rung-01.safetensors": 1,  # rung 1 lies there under its temporary name
    }
    command = [sys.executable, TINY, folder, *events, "never:"]
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    expected = [f"{event} -9 {rungs}" for event, rungs in events.items()] + ["never: 0 3"]
    assert process.stdout.splitlines() == expected, process.stderr
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in tiny_ladder.path.iterdir())
    for rung, undisturbed in zip(Ladder.open(folder), tiny_ladder, strict=True):
        assert rung.path.read_bytes() == undisturbed.path.read_bytes(), rung.name


@pytest.fixture
def copy(tiny_ladder, tmp_path):
    return shutil.copytree(tiny_ladder.path, tmp_path / "copy")


def test_truncated_rung_is_named_at_opening(copy):
    file = copy / "rung-01.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(RunError, match=r"rung-01\.safetensors is damaged: it has \d+ bytes"):
        Ladder.open(copy)


def test_flipped_bit_is_named_at_reading(copy):
    file = copy / "rung-02.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    ladder = Ladder.open(copy)
    ladder[1].model()
    with pytest.raises(RunError, match=r"rung-02\.safetensors is damaged.*SHA-256") as caught:
        ladder[2].model()
    assert "\n" not in str(caught.value)


def test_missing_rung_is_named(copy):
    (copy / "rung-00.safetensors").unlink()
    with pytest.raises(RunError, match=r"rung-00\.safetensors is missing"):
        Ladder.open(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "\0", '{"format": 1}', '{"format": 99}'])
def test_damaged_index_is_named(copy, content):
    (copy / "ladder.json").write_text(content)
    with pytest.raises(RunError, match=r"ladder\.json (is damaged|has format)"):
        Ladder.open(copy)


def test_damaged_checkpoint_is_named(tiny, tiny_source, copy):
    content = json.loads((copy / "ladder.json").read_text())
    content["rungs"].pop()
    (copy / "ladder.json").write_text(json.dumps(content))
    (copy / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged.*delete it"):
        tiny.build(copy, tiny_source)


def test_a_folder_without_a_ladder(tmp_path):
    with pytest.raises(RunError, match=r"ladder\.json is missing; build one"):
        Ladder.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed = 3 and is now asked for 4"),
        ({"threads": 2}, "threads = 1 and is now asked for 2"),
        ({"source": "builtin:digits"}, "source = 'tiny characters' and is now asked for 'builtin:digits'"),
        ({"schedule": Schedule(epochs_dense=9)}, "schedule.epochs_dense = 2 and is now asked for 9"),
        ({"arch": "resnet50"}, "arch = 'resnet8' and is now asked for 'resnet50'"),
    ],
)
def test_other_settings_are_refused(tiny, tiny_source, tiny_ladder, change, message):
    settings = {"source": tiny_source, "schedule": tiny.SCHEDULE, "seed": 3, "threads": 1, "arch": "resnet8"} | change
    with pytest.raises(RunError, match=message) as caught:
        Ladder.build(tiny_ladder.path, **settings)
    assert "\n" not in str(caught.value) and "choose another folder" in str(caught.value)


def test_other_settings_are_refused_before_the_first_rung_is_there(tiny, tiny_source, tiny_ladder, tmp_path):
    content = json.loads((tiny_ladder.path / "ladder.json").read_text()) | {"rungs": []}
    (tmp_path / "ladder.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match="seed = 3 and is now asked for 4"):
        Ladder.build(tmp_path, arch="resnet8", source=tiny_source, schedule=tiny.SCHEDULE, seed=4)
    assert json.loads((tmp_path / "ladder.json").read_text()) == content


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("depth.json", {}, r"holds another run, depth\.json; give --out another folder"),
        ("anything", {"seed": 1 << 63}, f"seed is {1 << 63}; it must be at most {(1 << 63) - 1}"),
    ],
)
def test_a_folder_that_cannot_be_begun_stays_as_it_is(tiny, tiny_source, tmp_path, name, change, message):
    (tmp_path / name).write_text("kept")
    with pytest.raises(ValueError, match=message):
        Ladder.build(tmp_path, **({"source": tiny_source, "schedule": tiny.SCHEDULE, "arch": "resnet8"} | change))
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "kept"


def test_a_file_is_no_folder_for_a_ladder(tiny, tiny_source, tmp_path):
    (tmp_path / "x").write_text("kept")
    with pytest.raises(RunError, match="x is a file; give --out a folder"):
        Ladder.build(tmp_path / "x", source=tiny_source, schedule=tiny.SCHEDULE, arch="resnet8")


def test_other_images_under_the_same_name_are_refused(tiny, tiny_source, tiny_ladder):
    other = characters.draw(96, torch.Generator().manual_seed(1))
    source = data.Dataset(tiny_source.name, tiny_source.classes, other, tiny_source.test)
    with pytest.raises(RunError, match="source_sha256"):
        tiny.build(tiny_ladder.path, source)


def test_wrong_names_are_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "ladder"
    with pytest.raises(ValueError, match="choose from resnet18"):
        Ladder.build(folder, arch="resnet19", source="builtin:digits")
    with pytest.raises(ValueError, match="choose from builtin:characters"):
        Ladder.build(folder, source="builtin:nothing")
    with pytest.raises(ValueError, match="1 channels and resnet18 takes 3"):
        Ladder.build(folder, source="builtin:digits8x8")
    for wrong in ({"seed": -1}, {"threads": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
            Ladder.build(folder, **wrong)
    assert not folder.exists()


def test_progress_counts_every_step_once(tiny, tiny_source, tmp_path):
    seen = []
    schedule = Schedule(epochs_dense=1, epochs_rung=1, batch=32, samples_rung=32, step=0.1, stop=0.2)
    source = data.Dataset("t", tiny_source.classes, tiny_source.train, tiny_source.test[:20])
    Ladder.build(
        tmp_path, arch="resnet8", source=source, schedule=schedule, threads=1, progress=lambda *args: seen.append(args)
    )
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_auto_ends_when_accuracy_and_entropy_have_fallen(tmp_path):
    generator = torch.Generator().manual_seed(0)
    train, test = characters.draw(288, generator), characters.draw(216, generator)
    source = data.Dataset("few characters", characters.CLASSES, train, test)
    schedule = Schedule(  # such a rate repairs nothing
        epochs_dense=8, epochs_rung=1, samples_rung=32, batch=32, lr=0.05, lr_rung=1e-6, augment=False, step=0.4,
        counts="parameters",
    )  # fmt: skip

    def build():
        return Ladder.build(tmp_path, arch="resnet8", source=source, schedule=schedule, threads=1)

    ladder = build()
    accuracies, entropies = [rung.source_accuracy for rung in ladder], [rung.source_entropy for rung in ladder]
    ends = [schedule.finished(accuracies[:count], entropies[:count]) for count in range(len(ladder) + 1)]
    assert ends == [False] * len(ladder) + [True] and len(ladder) < len(schedule.shares())
    assert Ladder.open(tmp_path).complete
    for rung, share in zip(ladder, schedule.shares(), strict=False):
        model = rung.model()
        everything = sum(parameter.numel() for parameter in model.parameters())
        weights = sum(weight.numel() for weight in pruning.prunable(model).values())
        assert rung.nonzeros == round(share * weights)
        assert rung.alpha == (everything - weights + rung.nonzeros) / everything
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(build()) == len(ladder) and before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


@pytest.mark.parametrize(("schedule", "batch"), [({"batch": 32}, 32), ({"batch": 33, "samples_rung": 31}, 31)])
def test_a_batch_that_processes_cannot_share_is_refused(schedule, batch):
    work = engine.Engine()
    work.processes = 3
    with pytest.raises(ValueError, match=f"{batch} samples cannot be divided among 3 .*; choose a multiple of 3"):
        check_parts(Schedule(**schedule), 1000, work)
    check_parts(Schedule(batch=33, samples_rung=66), 1000, work)


def test_divergence_is_an_error_not_a_rung(tiny_source, tmp_path):
    schedule = Schedule(epochs_dense=2, epochs_rung=1, batch=32, lr=1e30, stop=0.9)
    with pytest.raises(TrainingError, match="choose a lower one"):
        Ladder.build(tmp_path, arch="resnet8", source=tiny_source, schedule=schedule, threads=1)
    assert len(Ladder.open(tmp_path)) == 0


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `entropi ladder` in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["entropi", "ladder", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return run


def test_command_goes_on_with_the_folders_own_settings(command, tiny_source, tmp_path):
    file, folder = tmp_path / "tiny.npz", tmp_path / "ladder"
    train, test = tiny_source.train, tiny_source.test
    np.savez(
        file,
        images=np.concatenate([train.images, test.images]),
        labels=np.concatenate([train.labels, test.labels]),
        split=["train"] * len(train) + ["test"] * len(test),
    )
    begin = ("--arch", "resnet8", "--source", f"npz:{file}", "--preset", "smoke", "--seed", 5, "--no-augment")
    overrides = ("--epochs", 1, "--epochs-rung", 1, "--samples-rung", 32, "--batch", 32, "--lr", 0.02,
                 "--lr-rung", 0.01, "--step", 0.2, "--stop", 0.1, "--counts", "parameters",
                 "--precision", "float32")  # fmt: skip
    status, out, err = command("--out", folder, *begin, *overrides, "--json")
    assert status == 0, err
    rungs = json.loads(out)["rungs"]
    assert [list(rung) for rung in rungs] == [["rung", "alpha", "nonzeros", "source_accuracy", "source_entropy"]] * 3
    ladder = Ladder.open(folder)
    assert (ladder.arch, ladder.seed, ladder.precision) == ("resnet8", 5, "float32")
    assert ladder.schedule == Schedule(
        epochs_dense=1, epochs_rung=1, samples_rung=32, batch=32, lr=0.02, lr_rung=0.01, step=0.2, stop=0.1,
        counts="parameters", precision="float32", augment=False,
    )  # fmt: skip

    last = ladder[2].path.read_bytes()
    content = json.loads((folder / "ladder.json").read_text())
    content["rungs"].pop()
    (folder / "ladder.json").write_text(json.dumps(content))
    ladder[2].path.unlink()
    status, _, err = command("--out", folder, "--lr", 0.5)
    assert status == 1 and "schedule.lr = 0.02 and is now asked for 0.5" in err and err.count("\n") <= 2
    status, out, err = command("--out", folder, "--lr", 0.02)
    assert status == 0 and "source entropy" in out, err
    assert ladder[2].path.read_bytes() == last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "quick"), "choose from paper, short, smoke, demo"),
        (("--stop", "soon"), "stop is soon; it must be between 0 and 1, both excluded, or auto"),
        (("--step", "2"), "step is 2.0"),
        (("--batch", "0"), "batch is 0"),
        (("--precision", "float16"), "choose from auto, float32, bfloat16"),
        (("--counts", "all"), "choose from weights, parameters"),
    ],
)
def test_command_refuses_before_it_loads_data(command, tmp_path, arguments, message):
    status, _, err = command("--out", tmp_path / "ladder", "--source", "builtin:nothing", *arguments)
    assert status == 1 and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "ladder").exists()


def test_command_lists_the_presets(command):
    _, out, _ = command("--help")
    *presets, last = PRESETS
    assert f"{', '.join(presets)} or {last}" in " ".join(out.replace("│", " ").split())


def test_only_the_first_process_prints(command, monkeypatch, tiny_ladder):
    assert "rung" in command("--out", tiny_ladder.path)[1]
    monkeypatch.setenv("RANK", "1")
    assert command("--out", tiny_ladder.path) == (0, "", "")
