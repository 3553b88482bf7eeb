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

from entropi.device import Bundle
from entropi.export import export_pixels
from entropi.firmware_sim import board
from entropi.firmware_sim.build import FIRMWARE, build_firmware
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


@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_a_board_at_a_port_learns_what_the_emulated_one_does(run, pixels, tmp_path, rate):
    faults = Faults(seed=1, rate=rate)
    firmware = build_firmware(pixels.image, board("nucleo-f446re"), 16 * 1024, 64, 64)
    with PtyBoard(firmware, faults) as at:
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
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "simulate.md").read_text(), re.S)
    shutil.copytree(pixels.folder, tmp_path / "build" / "r18")
    shutil.copy(FIRMWARE / "ports" / "stm32f446_usart2.c", tmp_path / "uart.c")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "simulate.md", "exec"), {})
    assert (tmp_path / "firmware.elf").read_bytes()[:4] == b"\x7fELF"


def test_a_board_with_another_image_or_budget_is_refused_in_one_line(run, pixels, tmp_path):
    other = export_pixels(data.load("builtin:digits8x8").test, tmp_path / "other")
    firmware = build_firmware(other.image, board("nucleo-f446re"), 16 * 1024, 64, 64)
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
