"""Predicted instructions against those that the emulated board counts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from networks import conv_layer, residual_network
from tflite_model import Model

from entropi.device.bundle import Bundle, Preprocessing
from entropi.device.toolchain import CORES, ZIG
from entropi.export import export_model
from entropi.export.costs import check_core, costs, image_loops, predict, records
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV, Network, Tensor
from entropi.export.rows import DENSE, PAIRS, RICE, forms
from entropi.firmware_sim import board
from entropi.host.layers import open_encoder

CORE = "cortex-m4f"
NETWORK = residual_network(seed=3, channels=8, size=18, density=0.05)


@pytest.fixture(scope="module", params=["size", "speed"])
def bundle(request) -> Bundle:
    """Every kind of layer, on maps of 18x18 to 1x1."""
    source, out = NETWORK.tensors[NETWORK.input], NETWORK.tensors[NETWORK.output]
    image, reports = write_image(NETWORK, Centering(np.zeros(out.channels, np.int8), 0.01), request.param)
    preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, source.scale, source.zero_point)
    return Bundle(Path(), image, {"layers": [asdict(report) for report in reports]}, preprocessing)


def test_predictions_are_near_what_is_measured(bundle):
    values = np.random.default_rng(0).integers(-128, 128, (3, 18, 18)).astype(np.int8)
    with open_encoder(bundle, board("nucleo-f446re")) as device:
        measured = np.array([run.ticks for run in device.run_layers(values)])
    predicted = np.array(predict(bundle.image, bundle.report["layers"], CORE))
    assert predicted.sum() == pytest.approx(measured.sum(), rel=0.03)
    assert np.median(np.abs(predicted / measured - 1)) < 0.03
    assert predicted == pytest.approx(measured, rel=0.2)


def test_rows_without_entries_are_told_from_the_others(bundle):
    layers = bundle.report["layers"]
    for layer, record, of in zip(layers, records(bundle.image, layers), NETWORK.layers, strict=True):
        if of.kind == CONV:
            form = next(form for form in forms(of.weight) if form.name == layer["encoding"])
            assert (record.rows, record.weight_bytes) == (np.count_nonzero(form.entries), form.bytes)


def test_the_first_layer_copies_the_input_in(bundle):
    first, second, *_ = image_loops(bundle.image, bundle.report["layers"], CORE)
    assert first["input: value"] == 3 * 18 * 18
    assert "input: value" not in second


def test_every_core_is_measured(bundle):
    measured = costs()["cores"]
    assert list(measured) == list(CORES)
    for core, entry in measured.items():
        assert f"--core {core}" in entry["command"] and entry["flags"] == list(ZIG.flags(CORES[core]))
        for counts in image_loops(bundle.image, bundle.report["layers"], core):
            assert counts.keys() <= entry["instructions"].keys()
    with pytest.raises(ValueError, match="no core is named 'cortex-m5'; choose one of cortex-m0plus, "):
        check_core("cortex-m5")


def layer(density: float) -> Network:
    """A linear layer of 64 features to 64."""
    tensors = {i: Tensor(64, 1, 1, 0.05, -7) for i in (0, 1)}
    linear = conv_layer(np.random.default_rng(0), tensors[0], 1, tensors[1], (0,), (1, 1), (1, 1), (0, 0), density)
    return Network(tensors, 0, 1, [linear])


def stored(network: Network, core: str, **decisions) -> tuple[Bundle, str]:
    """A network of one layer in the fastest form for a core, and that form's name."""
    image, (report,) = write_image(network, Centering(np.zeros(64, np.int8), 0.01), "speed", core, **decisions)
    return Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), 0.05, -7)), report.encoding


def break_even(core: str) -> float:
    """The least density, in hundredths, at which the layer is stored dense."""
    return next(d for d in np.arange(0.01, 1.01, 0.01) if stored(layer(d), core)[1] == "dense")


@pytest.mark.parametrize("on", [*map(board, ("raspberry-pi-pico", "nucleo-f446re"))], ids=lambda on: on.core)
def test_the_choice_is_the_cheaper_one_when_measured(on):
    values = np.random.default_rng(0).integers(-128, 128, (64, 1, 1)).astype(np.int8)
    even = break_even(on.core)
    for density, expected in ((0.7 * even, "pairs"), (1.3 * even, "dense")):
        assert stored(layer(density), on.core)[1] == expected
        taken = {}
        for form in (DENSE, PAIRS, RICE):
            bundle, name = stored(layer(density), on.core, forms=lambda weight, form=form: [forms(weight)[form]])
            with open_encoder(bundle, on) as device:
                device.encode(values)
                taken[name] = device.ticks["encode"].last
        assert min(taken, key=taken.get) == expected, (density, taken)


def test_cores_choose_for_themselves():
    even = {core: break_even(core) for core in CORES}
    low, *_, high = sorted(even, key=even.get)
    assert even[low] < even[high]
    between = layer((even[low] + even[high]) / 2)
    assert [stored(between, core)[1] for core in (low, high)] == ["dense", "pairs"]


def test_the_report_names_the_core_that_an_image_is_for(tmp_path):
    model = Model((1, 1, 1, 64), scale=0.03)
    model = model.pack(model.fully_connected("linear", model.input, np.random.default_rng(0), 64))
    report = export_model(model, "linear", tmp_path / "made", optimize="speed", core="cortex-m3").report
    assert (report["optimize"], report["core"]) == ("speed", "cortex-m3")
    assert report["layers"][0]["reason"].startswith("fewest predicted instructions on cortex-m3: ")
    with pytest.raises(ValueError, match="no core is named 'm3'"):
        export_model(model, "linear", tmp_path / "none", core="m3")
