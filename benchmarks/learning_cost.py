"""Instructions that a sample takes to learn, in every memory mode, on every core that is emulated.

    python benchmarks/learning_cost.py

Writes results/learning_cost.json; benchmarks/learning_page.py puts it into docs/learning.md.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from entropi.device import Bundle, HeadConfig
from entropi.device.budget import recipe
from entropi.device.files import write_json
from entropi.device.toolchain import CORES, ZIG
from entropi.export.image import Centering
from entropi.firmware_sim import Simulator, board
from entropi.firmware_sim.emulator import MODELS
from entropi.host.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from heads import head_bundle  # noqa: E402

FEATURES, CLASSES, SAMPLES, SEED = 512, 5, 800, 0
MODES = [(bytes_per_parameter, batch) for bytes_per_parameter in (12, 8, 4, 2) for batch in (1, 4, 8, 16)]


def lesson() -> tuple[np.ndarray, np.ndarray]:
    """int8 features [SAMPLES, FEATURES] around one mean a class, and labels."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, CLASSES, SAMPLES)
    means = rng.normal(-50, 12, (CLASSES, FEATURES))
    values = means[labels] + rng.normal(0, 30, (SAMPLES, FEATURES))
    return values.round().clip(-128, 127).astype(np.int8), labels


def measure(core: str, bundle: Bundle, head: HeadConfig, values: np.ndarray, labels: np.ndarray) -> dict:
    """Mean instructions of learning all samples, and of predicting ten."""
    on = replace(board("nucleo-f446re"), core=core)
    with Simulator(bundle, board=on, budget="64KiB", head=head) as device:
        for x, y in zip(values, labels, strict=True):
            device.learn_features(x, int(y))
        for x in values[:10]:
            device.predict_features(x)
        cost = device.footprint()
        return {
            "core": core,
            "head": asdict(head),
            "arena": cost["arena"],
            "learn": cost["instructions"]["learn"],
            "predict": cost["instructions"]["predict"],
        }


def main() -> None:
    values, labels = lesson()
    bundle = head_bundle(FEATURES, Centering.of(values))
    rows = []
    cores = sorted(set(CORES) & set(MODELS))
    for core in cores:
        print(f"\n{core}\n\n| bytes a parameter | batch | learn | predict | arena, bytes |\n|---|---|---|---|---|")
        for bytes_per_parameter, batch in MODES:
            row = measure(core, bundle, recipe(CLASSES, bytes_per_parameter, batch), values, labels)
            numbers = (row["learn"]["mean"], row["predict"]["mean"], row["arena"]["total"])
            print(f"| {bytes_per_parameter} | {batch} | " + " | ".join(f"{n:,.0f}" for n in numbers) + " |", flush=True)
            rows.append(row)
    result = {
        "command": "python benchmarks/learning_cost.py",
        "features": FEATURES,
        "samples": SAMPLES,
        "seed": SEED,
        "compiler": ZIG.version,
        "flags": {core: list(ZIG.flags(CORES[core])) for core in cores},
        **provenance("ziglang", "unicorn"),
        "rows": rows,
    }
    write_json(ROOT / "results" / "learning_cost.json", result)


if __name__ == "__main__":
    main()
