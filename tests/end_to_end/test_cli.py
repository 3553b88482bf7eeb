"""The command line as a newcomer meets it: what it prints, and one line for everything that is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from entropi.device.toolchain import ZIG
from entropi.firmware_sim import BoardError, Simulator
from entropi.firmware_sim.boards import FOLDER
from entropi.firmware_sim.build import STACK_MINIMUM
from entropi.host import cli
from entropi.host.entropy import DEFAULT

BIN = Path(sys.executable).parent


COMMANDS = ("", "demo", "ladder", "depth", "select", "simulate", "device", "report", "boards", "archs", "reproduce")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(run, command):
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert "entropi" in out and (not command or f"Example: entropi {command}" in " ".join(out.split()))


def test_the_installed_commands_start():
    for program in ("entropi", "entropi-export"):
        done = subprocess.run([BIN / program, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and ("Example" in done.stdout or "demo" in done.stdout)
    done = subprocess.run([BIN / "entropi", "report", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere/encoder.entropi is missing") and done.stderr.count("\n") == 1


def test_boards_as_json(run):
    boards = {board["name"]: board for board in json.loads(run("boards", "--json")[1])}
    assert boards["nucleo-f446re"]["flash"]["length"] == 512 * 1024
    assert boards["nucleo-f446re"]["ram"]["length"] == 128 * 1024
    assert run("boards", "--board", "bluepill", "--json")[1] == json.dumps([boards["bluepill"]], indent=1) + "\n"
    shown = run("boards")[1]
    assert all(name in shown for name in boards)


def test_boards_says_what_fits(run, small_demo, tmp_path):
    """The bytes are the linker's own for that board."""
    bundle = small_demo.folder / "build" / "pixels"
    toml = (FOLDER / "bluepill.toml").read_text()
    found = json.loads(run("boards", bundle, "--budget", "24KiB", "--board", "bluepill", "--json")[1])[0]
    assert (found["flash"]["missing"], found["ram"]["left"]) == (0, 0)
    with pytest.raises(BoardError) as refused:
        Simulator(bundle, "bluepill", "24KiB")
    assert found["ram"]["needed"] == refused.value.needed == 20480 + found["ram"]["missing"]
    assert found["compiler"] == ZIG.version and "-mcpu=cortex_m3" in found["flags"]

    (tmp_path / "mine.toml").write_text(toml.replace("0x5000", "0x8000"))
    status, out, err = run(
        "boards", bundle, "--budget", "24KiB", "--board", "bluepill", "--board", tmp_path / "mine.toml"
    )
    assert status == 0, err
    assert f"missing {found['ram']['missing']:,}" in out and "mine" in out and "-Os" in out
    mine = json.loads(run("boards", bundle, "--budget", "24KiB", "--board", tmp_path / "mine.toml", "--json")[1])[0]
    with Simulator(bundle, tmp_path / "mine.toml", "24KiB") as device:
        cost = device.footprint()
    assert mine["flash"]["needed"] == cost["flash"]["total"] == 65536 - mine["flash"]["left"]
    assert mine["ram"]["left"] == cost["ram"]["stack"] - STACK_MINIMUM


def test_report_prints_the_papers_frozen_rows(run, small_demo):
    status, out, err = run("report", small_demo.folder / "build" / "chosen")
    assert status == 0, err
    for figure in ("163,840", "409,600", "30,780", "76,860", "131.49", "arena", "flash", "stack", "Instructions"):
        assert figure in out
    content = json.loads(run("report", small_demo.folder / "build" / "chosen", "--json")[1])
    arena = content["footprint"]["arena"]
    assert arena["total"] <= arena["given"] == 48 * 1024
    assert content["footprint"]["instructions"]["encode"]["calls"] == 4
    assert 0 < content["footprint"]["stack"]["used"] < 4096


def test_select_then_export(run, small_demo, tmp_path):
    ladder = tmp_path / "ladder"
    shutil.copytree(small_demo.folder / "ladder", ladder)
    (ladder / "selection.json").unlink()
    status, _, err = run(ladder, "--out", tmp_path / "build", main=cli.export_main)
    assert status == 1 and "run entropi select" in err and not (tmp_path / "build").exists()

    select = ("select", ladder, "--target", "builtin:digits", "--also", "marginal", "--also", "joint")
    chosen = json.loads(run(*select, "--json")[1])
    assert len(chosen["rungs"]) == 3 and {"joint", "marginal", DEFAULT} <= set(chosen["rungs"][0])
    arguments = (ladder, "--rung", "best", "--max-drop", "100", "--out", tmp_path / "build", "--json")
    status, out, err = run(*arguments, main=cli.export_main)
    assert status == 0, err
    content = json.loads(out)
    assert content["rung"] == chosen["chosen_rung"]
    assert content["checks"]["tflite_micro_images_equal_byte_for_byte"] == 100


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ladder", "--out", "x", "--arch", "resnet19"), "resnet18"),
        (("ladder", "--out", "x", "--source", "builtin:nothing"), "choose from builtin:characters"),
        (("ladder", "--out", "x", "--preset", "quick"), "choose from paper, short"),
        (("select", "x", "--target", "builtin:digits"), "x is no ladder"),
        (("select", "x", "--target", "builtin:digits", "--estimator", "exact"), "choose from joint, marginal,"),
        (("report", "x"), "x/encoder.entropi is missing"),
        (("report", "PIXELS", "--board", "nucleo"), "nucleo-f446re"),
        (("report", "PIXELS", "--budget", "lots"), "'lots' is no size"),
        (("report", "PIXELS", "--budget", "1KiB"), "needed"),
        (("report", "PIXELS", "--budget", "127KiB"), "missing"),
        (("report", "PIXELS", "--picture", "x.gif"), "x.gif is no picture; end it in .png, .svg, .pdf"),
        (("report", "PIXELS", "--picture", "nowhere/x.png"), "there is no folder nowhere; make it first"),
        (("simulate", "x", "--target", "builtin:digits"), "x/encoder.entropi is missing"),
        (("simulate", "PIXELS", "--target", "builtin:digits"), "the encoder takes (1, 8, 8)"),
        (("simulate", "PIXELS", "--target", "builtin:digits8x8", "--samples", "5000"), "ask for at most"),
        (("simulate", "PIXELS", "--target", "builtin:digits8x8", "--new-classes", "10"), "let at most 9 come later"),
        (("simulate", "PIXELS", "--target", "builtin:digits8x8", "--lr", "-1"), "--lr -1 is no learning rate; choose"),
        (("report", "PIXELS", "--classes", "3", "--new-classes", "3"), "let at most 2 come later"),
        (("reproduce", "fig3", "--arch", "resnet8"), "fig3 is of resnet18 on CIFAR-100; ask for both"),
        (("reproduce", "fig3", "--cifar100", "none"), "fig3 is of resnet18 on CIFAR-100"),
        (("demo", "--out", "x", "--board", "redpill"), "nucleo-f446re"),
        (("boards", "--board", "redpill"), "no board is named 'redpill'; choose one of arduino-nano-33-ble, "),
        (("boards", "PIXELS", "--board", "mine.toml"), "mine.toml: No such file"),
        (("boards", "PIXELS", "--budget", "1KiB"), "given 1024, missing"),
        (("simulate", "PIXELS", "--target", "builtin:digits8x8", "--budget", "1KiB"), "missing"),
        (("simulate", "PIXELS", "--target", "builtin:digits8x8", "--budget", "127KiB"), "missing"),
        (("simulate", "PIXELS", "--target", "builtin:digits8x8", "--board", "nucleo"), "nucleo-f446re"),
        (("device", "x", "--target", "builtin:digits", "--port", "/dev/none"), "there is no port /dev/none"),
        (("device", "PIXELS", "--target", "builtin:digits8x8", "--port", "/dev/null"), "is no serial port"),
        (("device", "PIXELS", "--target", "builtin:digits8x8", "--port", "/dev/null", "--budget", "9zz"), "is no size"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run, arguments, says, small_demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = small_demo.folder / "build" / "pixels"
    status, out, err = run(*(pixels if a == "PIXELS" else a for a in arguments))
    last = err.strip().splitlines()[-1]
    assert status == 1 and out == ""
    assert last.startswith("error: ") and says in last
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_is_status_2(run):
    assert run("select")[0] == 2
    assert run("simulate", "x", "--target", "builtin:digits", "--samples", "0")[0] == 2


def test_debug_shows_the_traceback(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["entropi", "--debug", "report", str(tmp_path)])
    with pytest.raises(ValueError, match="is missing"):
        cli.main()
    monkeypatch.delenv("ENTROPI_DEBUG")
