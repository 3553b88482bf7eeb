"""Predicted instructions against those that the emulated board counts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from networks import residual_network

from entropi.device.bundle import Bundle, Preprocessing
from entropi.export.image import Centering, write_image
from entropi.export.integer import CONV
from entropi.export.rows import forms
from entropi.firmware_sim import board
from entropi.host.costs import loops, predict, records
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
    first, second, *_ = loops(bundle.image, bundle.report["layers"])
    assert first["input: value"] == 3 * 18 * 18
    assert "input: value" not in second


def test_a_core_that_was_not_measured(bundle):
    layers = bundle.report["layers"]
    assert predict(bundle.image, layers, "cortex-m7") == [None] * len(layers)
