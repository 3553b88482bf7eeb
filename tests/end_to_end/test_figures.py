"""Figures in docs/ are those of results/, and the encoder's are what the code takes as it stands."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from entropi.device.toolchain import ZIG
from entropi.export.narrow import WEIGHT_BITS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CORE = "cortex-m4f"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import encoder_instructions

    return encoder_instructions


def test_the_fixture_takes_what_the_result_says(benchmark):
    runs = json.loads(benchmark.RESULT.read_bytes())["runs"]
    variant = {"weight_bits": WEIGHT_BITS, "optimize": "speed"}
    (kept,) = [r for r in runs if variant.items() <= r.items() and (r["core"], r["compiler"]) == (CORE, ZIG.version)]
    _, network = benchmark.fixture()
    bundle, layers = benchmark.stored(network, "speed", CORE)
    variant["scratch_bytes"] = benchmark.scratch_bytes(network, "speed", layers)
    assert {**variant, **benchmark.run(bundle, layers, benchmark.example(network), CORE, ZIG)} == kept


def test_the_pages_have_the_results_tables(benchmark):
    tables = benchmark.tables(json.loads(benchmark.RESULT.read_bytes()))
    for page, names in benchmark.PAGES.items():
        text = page.read_text()
        assert benchmark.filled(text, {name: tables[name] for name in names}) == text


@pytest.mark.parametrize("name", ["learning_page", "depth_page", "plan_peaks", "host_speed"])
def test_a_page_has_its_results_tables(monkeypatch, name):
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = import_module(name)
    text = script.PAGE.read_text()
    assert script.filled(text, script.tables()) == text


def test_the_break_even_is_what_the_exporter_does(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import instruction_costs

    cores = instruction_costs.costs()["cores"]
    for core in (CORE, "cortex-m55"):
        assert cores[core]["break_even"] == {kind.name: kind.break_even(core) for kind in instruction_costs.KINDS}
    text = instruction_costs.PAGE.read_text()
    assert instruction_costs.filled(text, instruction_costs.tables(instruction_costs.costs())) == text
