"""What one run of every loop of the runtime costs on each core: a linear model fitted to measured layers.

    python benchmarks/instruction_costs.py [--networks N] [--core CORE ...] [BUNDLE ...]

Writes export/costs.json, by which the exporter chooses how weights are stored and `entropi report` predicts; cores
that are not named keep what they have there. Layers of random kinds, shapes, kernels, strides, densities and forms of
weights are measured on an emulated board of the core, in networks of 24; the fit minimises relative errors, and no cost
is below zero. How far off it is: every fourth network is predicted by a fit to the others; the bundles, none of whose
layers is ever fitted, by the fit to all. From the costs follows, for some kinds of layers, the break-even: the share of
weights that are not zero from which on a layer is stored dense. It is the table of docs/export.md, too. A core takes a
minute.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from pages import ROOT, filled, markdown
from scipy.optimize import nnls

from entropi.device import Bundle
from entropi.device.bundle import Preprocessing
from entropi.device.files import write_atomically, write_json
from entropi.device.toolchain import CORES, ZIG
from entropi.export.costs import COSTS, costs, image_loops
from entropi.export.image import Centering, write_image
from entropi.export.integer import (
    ADD,
    AVERAGE_POOL,
    CONV,
    COPY,
    MAX_POOL,
    MEAN,
    MUL,
    SOFTMAX,
    SUB,
    TABLE,
    Layer,
    Network,
    Tensor,
    quantise_multiplier,
)
from entropi.export.rows import Form, forms
from entropi.export.softmax import exponentials
from entropi.firmware_sim import Board, boards
from entropi.host.layers import open_encoder
from entropi.host.provenance import provenance

PAGE = ROOT / "docs" / "export.md"
LAYERS = 24  # a network
HELD_OUT = 4  # every fourth network
SIZES = (3, 4, 5, 7, 8, 12, 14, 16, 24, 28, 32)  # of the input; strides make smaller ones
CHANNELS = (4, 8, 16, 24, 32, 48, 64, 96)
MOST_WEIGHTS = 40_000  # of one layer, so that every image fits the boards
SCALE = 0.05


class Maker:
    """A network of random layers, each of what the input or any layer before it left."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        height = int(rng.choice(SIZES))
        width = height if rng.random() < 0.7 else int(rng.choice(SIZES))
        self.network = Network({0: self.tensor(3, height, width)}, 0, 0)

    def make(self) -> Network:
        others = (self.pool, self.two, self.table, self.copy, self.softmax, self.mean)
        while len(self.network.layers) < LAYERS - 1:
            source = int(self.rng.choice(list(self.network.tensors)))
            make = self.conv if self.rng.random() < 0.6 else self.rng.choice(np.array(others, object))
            make(source)
        self.mean(self.network.output)
        return self.network

    def tensor(self, channels: int, height: int, width: int) -> Tensor:
        return Tensor(channels, height, width, SCALE, int(self.rng.integers(-100, 20)))

    def append(self, kind: int, inputs: Sequence[int], out: Tensor, **fields) -> None:
        number = self.network.output = len(self.network.tensors)
        self.network.tensors[number] = out
        low = -128 if self.rng.random() < 0.7 else out.zero_point
        self.network.layers.append(Layer(kind, f"layer {number}", tuple(inputs), number, low, 127, **fields))

    def window(self, source: Tensor, kernels: Sequence[int]) -> tuple[dict, tuple[int, int]] | None:
        """Kernel, stride and padding that the source has room for, and the size of what comes out."""
        kernel, stride = int(self.rng.choice(kernels)), int(self.rng.choice((1, 1, 2)))
        pad = int(self.rng.choice((0, kernel // 2)))
        if min(source.shape[1:]) < max(kernel - pad, pad + 1):
            return None
        size = tuple((n + 2 * pad - kernel) // stride + 1 for n in source.shape[1:])
        return {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "pad": (pad,) * 2}, size

    def conv(self, source: int) -> None:
        t = self.network.tensors[source]
        found = self.window(t, (1, 1, 3, 3, 3, 5))
        if found is None:
            return
        window, size = found
        depthwise = self.rng.random() < 0.25
        channels = t.channels if depthwise else int(self.rng.choice(CHANNELS))
        shape = (channels, 1 if depthwise else t.channels, *window["kernel"])
        if np.prod(shape) > MOST_WEIGHTS:
            return
        most = self.rng.choice([15, 127])  # of 5 and of 8 bits, which some kernels tell apart
        weight = self.rng.integers(-most, most + 1, shape).astype(np.int8)
        weight[self.rng.random(shape) >= 10 ** min(self.rng.uniform(-3.7, 1), 0)] = 0
        width = 60 * 60 * max(1.0, np.count_nonzero(weight) / channels) ** 0.5
        self.append(
            CONV,
            (source,),
            self.tensor(channels, *size),
            weight=weight,
            bias=self.rng.integers(-2000, 2000, channels),
            scales=tuple(quantise_multiplier(float(s)) for s in self.rng.uniform(40, 120, channels) / width),
            groups=channels if depthwise else 1,
            **window,
        )

    def pool(self, source: int) -> None:
        t = self.network.tensors[source]
        found = self.window(t, (2, 3, 5, 8))
        if found:
            window, size = found
            kind = int(self.rng.choice((MAX_POOL, AVERAGE_POOL)))
            self.append(kind, (source,), self.tensor(t.channels, *size), clipped=self.rng.random() < 0.5, **window)

    def two(self, source: int) -> None:
        kind = int(self.rng.choice((ADD, SUB, MUL)))
        if kind == MUL:
            real = (10 ** self.rng.uniform(-3, -0.5),)
        else:  # the larger of both scales is one half of their common one, and so may be the other
            other = min(self.rng.uniform(0.1, 0.7), 0.5)
            real = (*self.rng.permutation((0.5, other)), 2 / (1 << 20))
        scales = tuple(quantise_multiplier(float(scale)) for scale in real)
        self.append(kind, (source, source), self.tensor(*self.network.tensors[source].shape), scales=scales)

    def table(self, source: int) -> None:
        table = self.rng.integers(-128, 128, 256).astype(np.int8)
        self.append(TABLE, (source,), self.tensor(*self.network.tensors[source].shape), table=table)

    def copy(self, source: int) -> None:
        self.append(COPY, (source,), self.tensor(*self.network.tensors[source].shape))

    def softmax(self, source: int) -> None:
        out = self.tensor(*self.network.tensors[source].shape)
        self.append(SOFTMAX, (source,), out, table=exponentials(SCALE, 1.0))

    def mean(self, source: int) -> None:
        t = self.network.tensors[source]
        scale = quantise_multiplier(1 / (t.height * t.width))
        self.append(MEAN, (source,), self.tensor(t.channels, 1, 1), scales=(scale,))


@dataclass(frozen=True)
class Kind:
    """A square convolution of 64 channels to 64, padded by half its kernel."""

    name: str
    size: int
    kernel: int
    groups: int = 1

    def break_even(self, core: str) -> float | None:
        """The least density, in hundredths, at which random weights are stored dense for speed; None where none is."""
        at = bisect_left(range(1, 101), True, key=lambda hundredths: self._is_dense(hundredths / 100, core))
        return (at + 1) / 100 if at < 100 else None

    def _is_dense(self, density: float, core: str) -> bool:
        rng, channels = np.random.default_rng(0), 64
        shape = channels, channels // self.groups, self.kernel, self.kernel
        conv = Layer(
            CONV, self.name, (0,), 1, -128, 127, (self.kernel,) * 2, pad=(self.kernel // 2,) * 2,
            weight=rng.integers(1, 128, shape).astype(np.int8) * (rng.random(shape) < density),
            bias=np.zeros(channels, np.int64), scales=(quantise_multiplier(1e-4),) * channels, groups=self.groups,
        )  # fmt: skip
        tensors = {i: Tensor(channels, self.size, self.size, SCALE, 0) for i in (0, 1)}
        centering = Centering(np.zeros(channels * self.size**2, np.int8), 0.01)
        _, (report,) = write_image(Network(tensors, 0, 1, [conv]), centering, "speed", core)
        return report.encoding == "dense"


KINDS = (
    Kind("linear", 1, 1),
    Kind("3x3 on 2x2", 2, 3),
    Kind("1x1 on 4x4", 4, 1),
    Kind("3x3 on 4x4", 4, 3),
    Kind("1x1 on 8x8", 8, 1),
    Kind("3x3 on 8x8", 8, 3),
    Kind("depthwise 3x3 on 8x8", 8, 3, groups=64),
)


def any_form(rng: np.random.Generator) -> Callable[[np.ndarray], list[Form]]:
    """Of a weight, a form drawn at random, so that what is measured does not depend on what was before."""
    return lambda weight: [forms(weight)[rng.integers(3)]]


@dataclass(frozen=True)
class Measured:
    """The layers of one network: how often each loop runs in each of them, and the instructions that each took."""

    loops: list[dict[str, float]]
    instructions: np.ndarray

    @classmethod
    def of(cls, bundle: Bundle, values: np.ndarray, on: Board) -> Measured:
        with open_encoder(bundle, on) as device:
            ticks = [run.ticks for run in device.run_layers(values)]
        return cls(image_loops(bundle.image, bundle.report["layers"], on.core), np.array(ticks, float))

    @classmethod
    def random(cls, seed: int, on: Board) -> Measured:
        rng = np.random.default_rng(seed)
        network = Maker(rng).make()
        out, source = network.tensors[network.output], network.tensors[network.input]
        optimize = ("size", "speed")[seed % 2]  # without and with borders
        centering = Centering(np.zeros(out.channels, np.int8), 0.01)
        image, reports = write_image(network, centering, optimize, forms=any_form(rng))
        preprocessing = Preprocessing((0.0,) * 3, (1.0,) * 3, source.scale, source.zero_point)
        bundle = Bundle(Path(), image, {"layers": [asdict(report) for report in reports]}, preprocessing)
        return cls.of(bundle, rng.integers(-128, 128, source.shape).astype(np.int8), on)

    def predicted(self, fitted: dict[str, float]) -> np.ndarray:
        return np.array([sum(fitted.get(name, 0) * count for name, count in counts.items()) for counts in self.loops])


def fit(networks: Sequence[Measured]) -> dict[str, float]:
    names = sorted({name for network in networks for counts in network.loops for name in counts})
    rows = [[counts.get(name, 0) for name in names] for network in networks for counts in network.loops]
    measured = np.concatenate([network.instructions for network in networks])
    relative = np.array(rows) / measured[:, None]
    size = relative.max(axis=0)
    found, _ = nnls(relative / size, np.ones(len(measured)))
    return {name: float(f"{cost:.4g}") for name, cost in zip(names, found / size, strict=True)}


def errors(networks: Sequence[Measured], fitted: dict[str, float]) -> dict[str, float]:
    """Relative errors: quantiles of the layers', and the largest of whole networks'."""
    predicted = [network.predicted(fitted) for network in networks]
    layers = np.concatenate([p / n.instructions - 1 for p, n in zip(predicted, networks, strict=True)])
    whole = [p.sum() / n.instructions.sum() - 1 for p, n in zip(predicted, networks, strict=True)]
    median, ninety, largest = np.quantile(np.abs(layers), (0.5, 0.9, 1))
    found = {"median": median, "90 %": ninety, "largest": largest, "whole network": np.abs(whole).max()}
    return {"layers": len(layers), **{name: round(float(value), 4) for name, value in found.items()}}


def measure(on: Board, networks: int, bundles: Sequence[Path]) -> dict:
    """What the file says of the board's core."""
    with ProcessPoolExecutor() as pool:
        measured = list(pool.map(Measured.random, range(networks), repeat(on)))
    kept = [network for number, network in enumerate(measured) if (number + 1) % HELD_OUT]
    judged = {"networks held out": errors(measured[HELD_OUT - 1 :: HELD_OUT], fit(kept))}
    fitted = fit(measured)
    for path in bundles:
        bundle = Bundle.open(path)
        judged[bundle.report["name"]] = errors([Measured.of(bundle, bundle.golden()["input"][0], on)], fitted)
    words = ["python benchmarks/instruction_costs.py", f"--networks {networks} --core {on.core}"]
    return {
        "command": " ".join([*words, *(path.name for path in bundles)]),
        "board": on.name,
        "compiler": ZIG.version,
        "flags": list(ZIG.flags(CORES[on.core])),
        **provenance("ziglang", "unicorn", "scipy"),
        "errors": judged,
        "instructions": fitted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", type=Path, metavar="BUNDLE", help="predicted, never fitted")
    parser.add_argument("--networks", type=int, default=96, help="random networks")
    parser.add_argument("--core", action="append", choices=CORES, help="again for another one; by default all")
    options = parser.parse_args()
    board_of = {board.core: board for board in boards().values()}
    for core in options.core or CORES:
        content = json.loads(COSTS.read_text())
        content["cores"][core] = measure(board_of[core], options.networks, options.bundles)
        content["cores"] = {name: content["cores"][name] for name in CORES if name in content["cores"]}
        write_json(COSTS, content)
        costs.cache_clear()
        content["cores"][core]["break_even"] = {kind.name: kind.break_even(core) for kind in KINDS}
        write_json(COSTS, content)
        costs.cache_clear()
    write_atomically(PAGE, filled(PAGE.read_text(), tables(costs())).encode())


def tables(content: dict) -> dict[str, str]:
    """The page's table, by marker."""
    cores = content["cores"]

    def line(kind: Kind) -> tuple[str, ...]:
        even = [core["break_even"][kind.name] for core in cores.values()]
        return kind.name, *("never" if density is None else f"{density:.0%}" for density in even)

    return {"break-even": markdown(("layer, 64 channels to 64", *(f">{core}" for core in cores)), map(line, KINDS))}


if __name__ == "__main__":
    main()
