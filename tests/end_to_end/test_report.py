"""entropi report on a bundle of the demo: its layers, its totals, its picture."""

from __future__ import annotations

import gzip
import json
from io import StringIO

import pytest
from rich.console import Console

from entropi.device import Bundle
from entropi.host.footprint_figure import draw, footprint_figure
from entropi.host.report import render, report


@pytest.fixture(scope="module")
def bundle(small_demo) -> Bundle:
    return Bundle.open(small_demo.folder / "build" / "chosen")


@pytest.fixture(scope="module")
def content(bundle) -> dict:
    return report(bundle)


def test_layers_add_up(content):
    layers = content["layers"]
    instructions = content["footprint"]["instructions"]["encode"]["mean"]
    assert sum(layer["instructions"] for layer in layers) == pytest.approx(instructions, rel=0.01)
    assert sum(layer["predicted_instructions"] for layer in layers) == pytest.approx(instructions, rel=0.05)
    assert sum(layer["nonzeros"] for layer in layers) == content["bundle"]["nonzeros"]
    for layer in layers:
        assert layer["weight_bytes"] <= layer["bytes"]
        assert (layer["density"] is None) == (layer["kind"] != "conv")


def test_sizes_are_those_of_the_files(bundle, content):
    """In report.json, and so in what `entropi report --json` prints."""
    dense = (bundle.folder / "encoder_int8.tflite").read_bytes()
    for sizes in (bundle.report, content["bundle"]):
        assert sizes["image_bytes"] == (bundle.folder / "encoder.entropi").stat().st_size
        assert sizes["tflite_bytes"] == len(dense)
        assert sizes["tflite_gzip_bytes"] == pytest.approx(len(gzip.compress(dense, 9)), abs=100)


def test_text_is_whole_at_80_columns(content):
    text = StringIO()
    Console(width=80, file=text).print(render(content))
    shown = text.getvalue()
    assert "…" not in shown
    for layer in content["layers"]:
        assert f"{layer['instructions']:,}" in shown and f"{layer['predicted_instructions']:,}" in shown
    for name in ("image_bytes", "tflite_bytes", "tflite_gzip_bytes"):
        assert f"{content['bundle'][name]:,}" in shown
    assert json.loads(json.dumps(content))["layers"] == content["layers"]


def test_an_encoder_of_pixels(small_demo):
    content = report(Bundle.open(small_demo.folder / "build" / "pixels"))
    assert content["layers"] == [] and "tflite_bytes" not in content["bundle"]
    Console(width=80, file=StringIO()).print(render(content))
    draw(content)


@pytest.mark.parametrize("repeats", [1, 4])
def test_picture(content, tmp_path, repeats):
    """Every text lies on the picture, and no two names over each other, for 29 layers as for 116."""
    content = content | {"layers": content["layers"] * repeats}
    figure = draw(content)
    figure.draw_without_rendering()
    stored, work = figure.axes
    names = stored.get_yticklabels()
    for text in (*names, *stored.texts, *work.texts, stored.title, *figure.legends[0].texts):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()
    for axes in (stored, work):
        assert max(text.get_window_extent().x1 for text in axes.texts) <= axes.bbox.x1
    boxes = [name.get_window_extent() for name in names]
    assert len(boxes) == len(content["layers"])
    assert all(below.y1 <= above.y0 for above, below in zip(boxes, boxes[1:], strict=False))
    footprint_figure(content, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
