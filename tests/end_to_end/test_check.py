"""entropi-export check on a bundle of the demo, as it is and after somebody has changed one of its files."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from entropi.device import Bundle, BundleError
from entropi.export.flat import pack, parse
from entropi.export.integer import CONV
from entropi.export.reader import from_tflite
from entropi.host.check import (
    CLOSE,
    DEVIATES,
    DIFFERS,
    EQUAL,
    FAILED,
    HOST,
    LITERT_REFERENCE,
    TFLITE_MICRO,
    check,
    render,
)

BOARD = "nucleo-f446re"
EXACT = {TFLITE_MICRO, HOST, BOARD}


@pytest.fixture(scope="module")
def whole(small_demo) -> dict:
    return check(Bundle.open(small_demo.folder / "build" / "chosen"))


@pytest.fixture
def folder(small_demo, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(small_demo.folder / "build" / "chosen", tmp_path / "bundle"))


def shown(content: dict) -> str:
    text = StringIO()
    Console(width=80, file=text).print(render(content))
    assert "…" not in text.getvalue()
    return " ".join(text.getvalue().split())


def results(content: dict) -> dict[tuple[str, str], str]:
    return {(finding["runner"], finding["file"]): finding["result"] for finding in content["findings"]}


def differing(content: dict) -> dict[str, str]:
    """The runners of the integer network that must not differ and do, and where first."""
    return {f["runner"]: f["layer"] for f in content["findings"] if f["runner"] in EXACT and f["result"] == DIFFERS}


def change_golden(folder: Path, name: str) -> None:
    golden = Bundle.open(folder).golden()
    golden[name].flat[-1] ^= 1
    np.savez_compressed(folder / "golden.npz", **golden)


def test_what_export_wrote_passes(whole):
    assert results(whole) == {
        ("preprocessing", "report.json"): EQUAL,
        ("ONNX Runtime", "encoder.onnx"): CLOSE,
        ("ONNX Runtime", "encoder_int8.onnx"): DEVIATES,
        (LITERT_REFERENCE, "encoder_int8.tflite"): EQUAL,
        (TFLITE_MICRO, "encoder_int8.tflite"): EQUAL,
        (HOST, "encoder.entropi"): EQUAL,
        (BOARD, "encoder.entropi"): EQUAL,
    }
    assert whole["passed"] and whole["suspicion"] is None
    assert "Passed" in shown(whole)
    assert all(not any(layer["difference"].values()) for layer in whole["layers"])
    assert json.loads(json.dumps(whole)) == whole


def test_every_layer_has_its_instructions(small_demo, whole):
    image = small_demo.content["rows"][1]["instructions_image"]
    assert sum(layer["instructions"] for layer in whole["layers"]) == pytest.approx(image, rel=0.01)


def test_a_weight_of_the_tflite_model(folder):
    path = folder / "encoder_int8.tflite"
    number, layer = [pair for pair in enumerate(from_tflite(path.read_bytes()).layers) if pair[1].kind == CONV][3]
    model = parse(path.read_bytes())
    graph = model.subgraphs[0]
    kernel = next(op for op in graph.operators if op.outputs[0] == layer.output).inputs[1]
    buffer = model.buffers[graph.tensors[kernel].buffer]
    weights = np.array(buffer.data).view(np.int8)
    weights[np.abs(weights.astype(int)).argmax()] *= -1
    buffer.data = weights.view(np.uint8)
    path.write_bytes(pack(model))

    content = check(Bundle.open(folder))
    first = f"layer_{number:02d}"
    assert differing(content) == {TFLITE_MICRO: first}
    assert content["suspicion"]["files"] == ["encoder_int8.tflite"]
    assert content["suspicion"]["layer"] == first and content["suspicion"]["name"] == layer.name
    assert (
        f"Look at encoder_int8.tflite: tflite-micro against golden.npz and C on this host and {BOARD}, first in {first}"
        in shown(content)
    )


def test_a_byte_of_the_golden_vectors(folder, whole):
    name = whole["layers"][4]["layer"]
    change_golden(folder, name)
    content = check(Bundle.open(folder))
    assert differing(content) == dict.fromkeys(EXACT, name)
    assert content["suspicion"]["files"] == ["golden.npz"]
    assert "1 of " in next(f["text"] for f in content["findings"] if f["runner"] == HOST)
    assert content["layers"][4]["difference"] == {
        TFLITE_MICRO: 1,
        "LiteRT's reference kernels": 1,
        HOST: 1,
        BOARD: None,
    }
    assert not content["passed"]


def test_a_byte_of_the_golden_features(folder):
    change_golden(folder, "features")
    content = check(Bundle.open(folder))
    assert differing(content) == dict.fromkeys(EXACT, "features")
    assert content["suspicion"]["files"] == ["golden.npz"]


def test_golden_vectors_that_cannot_be_read(folder):
    path = folder / "golden.npz"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(BundleError, match=r"golden.npz is damaged \(.*\); export again"):
        check(Bundle.open(folder))
    path.write_bytes(b"")
    with pytest.raises(BundleError, match=r"golden.npz is damaged \(.*\); export again"):
        Bundle.open(folder).golden()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"preprocessing": {"mean": 1}}'])
def test_a_report_that_cannot_be_read(folder, text):
    (folder / "report.json").write_text(text)
    with pytest.raises(BundleError, match=r"report.json is damaged \(.*\); export again"):
        Bundle.open(folder)


def test_the_image_of_another_rung(small_demo, folder):
    shutil.copy(small_demo.folder / "build" / "dense" / "encoder.entropi", folder)
    content = check(Bundle.open(folder))
    assert differing(content) == {HOST: "layer_00", BOARD: "layer_00"}
    assert content["suspicion"]["files"] == ["encoder.entropi"]
    (on_board,) = (f for f in content["findings"] if f["runner"] == BOARD)
    assert on_board["text"].endswith("of flash, as nucleo-f446re is too small")


def test_an_image_of_another_size(small_demo, folder):
    shutil.copy(small_demo.folder / "build" / "pixels" / "encoder.entropi", folder)
    content = check(Bundle.open(folder))
    failed = [f["text"] for f in content["findings"] if f["result"] == FAILED]
    assert failed == ["encoder.entropi takes inputs of 1x8x8 and golden.npz holds inputs of 3x32x32; export again"] * 2


def test_files_that_do_not_load(small_demo, folder):
    for name in ("encoder.entropi", "encoder_int8.tflite", "encoder.onnx"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:1000])
    shutil.copy(small_demo.folder / "build" / "dense" / "encoder.onnx", folder / "encoder_int8.onnx")
    content = check(Bundle.open(folder))
    assert [r for r in results(content).values()].count(FAILED) == 5
    assert not content["passed"] and content["suspicion"] is None
    assert "Failed; see above." in shown(content)


def test_files_that_are_missing(folder):
    for name in ("encoder_int8.tflite", "encoder.onnx"):
        (folder / name).unlink()
    content = check(Bundle.open(folder))
    assert [f["text"] for f in content["findings"] if f["result"] == FAILED] == [
        "the file is missing; export again"
    ] * 3
    assert results(content)[HOST, "encoder.entropi"] == EQUAL and not content["passed"]


def test_the_onnx_file_of_another_rung(small_demo, folder):
    shutil.copy(small_demo.folder / "build" / "dense" / "encoder.onnx", folder)
    content = check(Bundle.open(folder))
    assert [key for key, result in results(content).items() if result == DIFFERS] == [("ONNX Runtime", "encoder.onnx")]


def test_an_encoder_of_pixels_has_less_to_compare(small_demo):
    content = check(Bundle.open(small_demo.folder / "build" / "pixels"))
    assert content["passed"] and len(content["findings"]) == 2 and content["layers"] == []
