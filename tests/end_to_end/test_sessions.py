"""`entropi simulate` and `entropi device` as a user meets them: interrupted, killed, on a bad line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pty_board import Faults, PtyBoard

from entropi.device import Bundle, HeadConfig, plan_head
from entropi.export import export_pixels
from entropi.firmware_sim import board
from entropi.firmware_sim.build import FIRMWARE, build_firmware
from entropi.firmware_sim.serial import SerialDevice
from entropi.host import data

ROOT = Path(__file__).resolve().parents[2]
ENTROPI = Path(sys.executable).parent / "entropi"
FEW = ("--budget", "16KiB", "--samples", "15", "--every", "50")
TASK = ("--target", "builtin:digits8x8", *FEW)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Bundle:
    return export_pixels(data.load("builtin:digits8x8").train, tmp_path_factory.mktemp("bundle") / "pixels")


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> tuple[Bundle, str]:
    """The same digits in a file, which a new process reads without loading torch, and their bundle."""
    folder = tmp_path_factory.mktemp("grey")
    digits = data.load("builtin:digits8x8").train
    np.savez(folder / "digits.npz", images=digits.images[:, 0], labels=digits.labels)
    target = f"npz:{folder / 'digits.npz'}"
    return export_pixels(data.load(target).train, folder / "pixels"), target


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_interrupted_and_killed_it_ends_with_the_same_bytes(run, grey, tmp_path):
    bundle, target = grey
    task = (bundle.folder, "--target", target, *FEW, "--epochs", "4")
    status, out, err = run("simulate", *task, "--out", tmp_path / "whole", "--json")
    assert status == 0, err
    content = json.loads(out)
    assert content["accuracy"] > 0.8 and content["accuracy_before_learning"] > 0.3 and "samples" not in content
    assert content["footprint"]["instructions"]["learn"]["calls"] == 600
    head = content["settings"]["head"]
    assert head["steps"] == (2 if head["replay"] else 1) * 600 / head["batch"]

    cut = tmp_path / "cut"
    command = [ENTROPI, "simulate", *task, "--out", cut]
    checkpoint = cut / "checkpoint.npz"

    def started() -> subprocess.Popen:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):
            time.sleep(0.001)
        return process

    process = started()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert f"of 600 samples, kept in {cut}; the same command goes on" in err and "Traceback" not in err
    process = started()
    process.kill()
    process.communicate(timeout=60)
    assert checkpoint.exists()

    status, out, err = run("simulate", *task, "--out", cut)
    assert status == 0, err
    assert contents(cut) == contents(tmp_path / "whole")
    status, again, _ = run("simulate", *task, "--out", cut)
    assert (status, again) == (0, out)
    status, out, err = run("simulate", *task, "--seed", "1", "--out", cut)
    assert (status, out) == (1, "") and "holds a session with seed 0, not 1; give --out another folder" in err
    assert contents(cut) == contents(tmp_path / "whole")


def test_new_classes_come_later_and_old_ones_are_not_forgotten(run, grey, tmp_path):
    bundle, target = grey
    few = ("--budget", "64KiB", *FEW[2:], "--epochs", "2", "--new-classes", "3")
    task = ("simulate", bundle.folder, "--target", target, *few)
    found = {}
    for replay in ("--replay", "--no-replay"):
        folder = tmp_path / replay.strip("-")
        status, out, err = run(*task, replay, "--out", folder)
        assert status == 0, err
        found[replay] = json.loads((folder / "session.json").read_text())
        assert "10 classes, 3 of them to come later" in " ".join(out.split()) and "new classes" in out
    kept, forgot = found.values()
    assert kept["settings"]["head"]["replay"] > 100 and forgot["settings"]["head"]["replay"] == 0
    for content in (kept, forgot):
        assert content["settings"]["head"]["new_classes"] == 3 and content["settings"]["head"]["steps"] == 0
        assert content["rounds"] == [0, 105, 210, 255, 300]
        labels = content["samples"]["label"]
        assert max(labels[:210]) == 6 and min(labels[210:]) == 7
        before = next(grading for grading in content["held_out"] if grading["learned"] == 210)
        assert before["accuracy_new_classes"] == 0 and before["accuracy_old_classes"] > 0.7
        assert content["accuracy_new_classes"] > 0.7
    assert kept["accuracy_old_classes"] > forgot["accuracy_old_classes"] + 0.1
    assert len(set(kept["samples"]["index"])) == 150
    status, out, err = run(*task, "--no-replay", "--out", tmp_path / "replay")
    assert status == 1 and f"head's replay {kept['settings']['head']['replay']}, not 0; give --out another" in err


def test_no_torch_is_loaded(grey, tmp_path):
    """It takes seconds, and a session needs none of it."""
    bundle, target = grey
    arguments = ["simulate", str(bundle.folder), "--target", target, *FEW[:2], "--samples", "1", "--out", "out"]
    code = (
        f"import sys; from entropi.host.cli import main; sys.argv = ['entropi', *{arguments}]\n"
        "try: main()\nfinally: print([name for name in sys.modules if name.startswith('torch')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]" and "arena" in done.stdout


@pytest.fixture(scope="module")
def storing(pixels):
    """Firmware with two slots for a head of the session's plan."""
    head = plan_head(pixels.image, 16 * 1024, 10).head
    return build_firmware(pixels.image, board("nucleo-f446re"), 16 * 1024, head)


def test_a_board_that_loses_its_power_goes_on_and_keeps_its_head(run, pixels, storing, tmp_path):
    task = (pixels.folder, *TASK, "--out", tmp_path / "cut")
    run("simulate", pixels.folder, *TASK, "--out", tmp_path / "whole")
    with PtyBoard(storing, lives=100_000) as at:
        status, out, err = run("device", *task, "--port", at.port)
        last = " ".join(err.strip().splitlines()[-1:])
        assert (status, out) == (1, "") and last.startswith("error: E_CLOSED: the device was reset, as by a loss of po")
        assert sorted(contents(tmp_path / "cut")) == ["checkpoint.npz"]
        status, out, err = run("device", *task, "--port", at.port)
        assert status == 0, err
        assert "kept in the device's flash" in out
        ours, whole = (json.loads((tmp_path / name / "session.json").read_text()) for name in ("cut", "whole"))
        assert {**ours, "settings": 0, "footprint": 0} == {**whole, "settings": 0, "footprint": 0}
        learned = np.load(tmp_path / "cut" / "head.npy")
        at.lives = 0
        head = HeadConfig(**ours["settings"]["head"])
        with SerialDevice(pixels, at.port, budget="16KiB", head=head) as device:
            assert not device.head().any()
            device.restore()
            assert np.array_equal(device.head(), learned)


def test_a_board_without_room_for_a_head_ends_its_session_and_says_so(run, pixels, tmp_path):
    firmware = build_firmware(pixels.image, board("nucleo-f446re"), 16 * 1024)
    with PtyBoard(firmware) as at:
        arguments = (*TASK[:4], "--samples", "1", "--out", tmp_path / "d")
        status, out, err = run("device", pixels.folder, "--port", at.port, *arguments)
    assert status == 0, err
    assert "not kept: E_ARGUMENT: a stored head takes" in " ".join(out.split())


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_a_board_at_a_port_learns_what_the_emulated_one_does(run, pixels, storing, tmp_path, rate):
    faults = Faults(seed=1, rate=rate)
    with PtyBoard(storing, faults) as at:
        status, out, err = run("device", pixels.folder, "--port", at.port, *TASK, "--out", tmp_path / "d", "--json")
    assert status == 0, err
    assert bool(faults.count) == bool(rate)
    run("simulate", pixels.folder, *TASK, "--out", tmp_path / "s")
    ours, theirs = (json.loads((tmp_path / name / "session.json").read_text()) for name in "ds")
    assert ours["footprint"]["ticks"] == theirs["footprint"]["instructions"]
    for content in (ours, theirs):
        del content["settings"]["device"], content["footprint"]
    assert ours == theirs
    assert np.array_equal(np.load(tmp_path / "d" / "head.npy"), np.load(tmp_path / "s" / "head.npy"))


def test_the_firmware_is_built_as_the_page_says(pixels, tmp_path, monkeypatch):
    _, example = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "simulate.md").read_text(), re.S)
    shutil.copytree(pixels.folder, tmp_path / "build" / "r18")
    shutil.copy(FIRMWARE / "ports" / "stm32f446_usart2.c", tmp_path / "uart.c")
    shutil.copy(FIRMWARE / "flash.c", tmp_path / "flash.c")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "simulate.md", "exec"), {})
    assert (tmp_path / "firmware.elf").read_bytes()[:4] == b"\x7fELF"


def test_a_board_with_another_image_or_budget_is_refused_in_one_line(run, pixels, tmp_path):
    other = export_pixels(data.load("builtin:digits8x8").test, tmp_path / "other")
    firmware = build_firmware(other.image, board("nucleo-f446re"), 16 * 1024)
    with PtyBoard(firmware) as at:
        for folder, budget, says in (
            (pixels.folder, "16KiB", "the firmware holds the image"),
            (other.folder, "20KiB", "budget of 20480 bytes exceeds the firmware's arena of 16384"),
        ):
            arguments = (*TASK[:2], "--budget", budget, "--out", tmp_path / "out")
            status, out, err = run("device", folder, "--port", at.port, *arguments)
            last = err.strip().splitlines()[-1]
            assert status == 1 and out == "" and last.startswith("error: ") and says in last
    assert not (tmp_path / "out").exists()
