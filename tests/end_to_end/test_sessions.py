"""`entropi simulate` and `entropi device` as a user meets them: interrupted, killed, on a bad line."""

from __future__ import annotations

import json
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
from entropi.firmware_sim.build import build_firmware
from entropi.host import data

ENTROPI = Path(sys.executable).parent / "entropi"
TASK = ("--target", "builtin:digits8x8", "--budget", "16KiB", "--samples", "15", "--every", "50")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Bundle:
    return export_pixels(data.load("builtin:digits8x8").train, tmp_path_factory.mktemp("bundle") / "pixels")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_interrupted_and_killed_it_ends_with_the_same_bytes(run, pixels, tmp_path):
    status, out, err = run("simulate", pixels.folder, *TASK, "--out", tmp_path / "whole", "--json")
    assert status == 0, err
    content = json.loads(out)
    assert content["accuracy"] > 0.8 and content["accuracy_before_learning"] > 0.3 and "samples" not in content
    assert content["footprint"]["instructions"]["learn"]["calls"] == 150

    cut = tmp_path / "cut"
    command = [ENTROPI, "simulate", pixels.folder, *TASK, "--out", cut]
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
    assert f"of 150 samples, kept in {cut}; the same command goes on" in err and "Traceback" not in err
    process = started()
    process.kill()
    process.communicate(timeout=60)
    assert checkpoint.exists()

    status, out, err = run("simulate", pixels.folder, *TASK, "--out", cut)
    assert status == 0, err
    assert contents(cut) == contents(tmp_path / "whole")
    status, again, _ = run("simulate", pixels.folder, *TASK, "--out", cut)
    assert (status, again) == (0, out)
    status, out, err = run("simulate", pixels.folder, *TASK, "--seed", "1", "--out", cut)
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
