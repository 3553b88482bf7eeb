"""Features a second on this machine, one thread each: the device image beside LiteRT, ONNX Runtime and PyTorch.

    python benchmarks/host_speed.py SOURCE [SOURCE ...] --images SPEC [--repeats N]

A SOURCE is LADDER:RUNG, or an .npz as benchmarks/image_size.py takes it. Each is exported (`--optimize speed`), and the
files of that one export are timed on the same images: in every repeat one after the other, so that a busy machine slows
all of them alike; a ratio is taken within its repeat. Everyone takes images as they want them, prepared before, in
batches of the size at which they are fastest; and once more one by one. Times are processor time of the process.
Writes results/host_speed.json and the table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from ai_edge_litert.interpreter import Interpreter
from image_size import CIFAR_MEAN, CIFAR_STD, trial_rung
from pages import ROOT, filled, markdown
from torch import nn

from entropi.device import HostDevice, measure
from entropi.device.bundle import Bundle
from entropi.device.files import write_atomically, write_json
from entropi.device.session import SMALLEST_HEAD
from entropi.device.toolchain import ZIG, this_machine
from entropi.export import encoder as exported
from entropi.export.graph import from_module
from entropi.host import data
from entropi.host.provenance import provenance
from entropi.host.training.ladder import Ladder

RESULT = ROOT / "results" / "host_speed.json"
PAGE = ROOT / "docs" / "performance.md"
WAYS = {"batched": "in batches", "one_by_one": "one by one"}
PACKAGES = ("torch", "onnxruntime", "ai-edge-litert", "numpy", "ziglang")
BATCHES = (1, 8, 32, 128)
IMAGES = 256  # a multiple of every batch
OURS = "entropi"

Encode = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Trial:
    """The network in an .npz, as something to export."""

    path: Path
    input_shape: tuple[int, int, int] = (3, 32, 32)
    mean: tuple[float, ...] = CIFAR_MEAN
    std: tuple[float, ...] = CIFAR_STD

    @property
    def name(self) -> str:
        return self.path.stem

    def encoder(self) -> nn.Module:
        return trial_rung(self.path)


@dataclass(frozen=True)
class Runner:
    """One way to compute features, float or int8 [N, F], of `inputs` [N, C, H, W]; open(batch) makes what takes so many
    at a time."""

    inputs: np.ndarray
    open: Callable[[int], Encode]
    batches: Sequence[int] = BATCHES


def in_batches(encode: Encode, batch: int) -> Encode:
    return lambda inputs: np.concatenate([encode(inputs[at : at + batch]) for at in range(0, len(inputs), batch)])


def on_device(bundle: Bundle) -> Callable[[int], Encode]:
    device = HostDevice(bundle, measure(bundle.image, SMALLEST_HEAD).total, head=SMALLEST_HEAD)

    def make(batch: int) -> Encode:
        return (lambda x: device.encode(x[0])[None]) if batch == 1 else (lambda x: device.encode_batch(x, threads=1))

    return make


def on_litert(path: Path) -> Callable[[int], Encode]:
    """int8, by XNNPACK, which LiteRT takes unless it is told otherwise."""

    def make(batch: int) -> Encode:
        interpreter = Interpreter(str(path), num_threads=1)
        (source,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(source["index"], (batch, *source["shape"][1:]))
        interpreter.allocate_tensors()

        def encode(inputs: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(source["index"], inputs)
            interpreter.invoke()
            return interpreter.get_tensor(output["index"]).reshape(batch, -1)

        return encode

    return make


def on_onnxruntime(path: Path) -> Callable[[int], Encode]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: lambda inputs: session.run(None, {"image": inputs})[0].reshape(batch, -1)


def on_torch(module: nn.Module) -> Callable[[int], Encode]:
    """float32, batch norm folded, channels_last."""
    module = module.to(memory_format=torch.channels_last).eval()

    def make(batch: int) -> Encode:
        def encode(inputs: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                images = torch.from_numpy(inputs).to(memory_format=torch.channels_last)
                return module(images).reshape(batch, -1).numpy()

        return encode

    return make


def runners(bundle: Bundle, source: exported.EncoderSource, images: np.ndarray) -> dict[str, Runner]:
    normalised = exported.normalise(images, source.mean, source.std)
    quantised = bundle.preprocessing(images)
    rows = np.ascontiguousarray(quantised.transpose(0, 2, 3, 1))  # LiteRT's order: channels last
    folded = from_module(source.encoder().eval(), source.input_shape).folded
    return {
        OURS: Runner(quantised, on_device(bundle)),
        "LiteRT int8": Runner(rows, on_litert(bundle.folder / exported.TFLITE)),
        "ONNX Runtime int8": Runner(normalised, on_onnxruntime(bundle.folder / exported.ONNX_INT8)),
        "ONNX Runtime float32": Runner(normalised, on_onnxruntime(bundle.folder / exported.ONNX)),
        "PyTorch float32": Runner(normalised, on_torch(folded)),
    }


def seconds(encode: Encode, inputs: np.ndarray) -> float:
    """Processor time an image."""
    start = time.process_time()
    encode(inputs)
    return (time.process_time() - start) / len(inputs)


def spread(values: Sequence[float], digits: int) -> dict[str, float]:
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def compare(found: dict[str, tuple[Encode, np.ndarray, int]], repeats: int) -> dict:
    """Each runner (what it runs, its inputs, the batch it runs them in), timed `repeats` times in turn."""
    times = {name: [] for name in found}
    for _ in range(repeats):
        for name, (encode, inputs, _) in found.items():
            times[name].append(seconds(encode, inputs))
    return {
        name: {
            "batch": found[name][2],
            "images_a_second": spread([1 / t for t in spent], 1),
            "times_slower_than_entropi": spread([t / own for t, own in zip(spent, times[OURS], strict=True)], 3),
        }
        for name, spent in times.items()
    }


def fastest(runner: Runner) -> int:
    """The batch size with the least time an image, of two runs each."""

    def best(batch: int) -> float:
        encode = in_batches(runner.open(batch), batch)
        return min(seconds(encode, runner.inputs) for _ in range(2))

    return min(runner.batches, key=best)


def measured(bundle: Bundle, source: exported.EncoderSource, images: np.ndarray, repeats: int) -> dict:
    made = runners(bundle, source, images)
    batches = {name: fastest(runner) for name, runner in made.items()}
    batched = {n: (in_batches(r.open(batches[n]), batches[n]), r.inputs, batches[n]) for n, r in made.items()}
    single = {n: (in_batches(r.open(1), 1), r.inputs, 1) for n, r in made.items()}
    return {
        "alpha": getattr(source, "alpha", None),
        "nonzeros": sum(layer["nonzeros"] for layer in bundle.report["layers"]),
        "batched": compare(batched, repeats),
        "one_by_one": compare(single, repeats),
    }


def open_source(name: str) -> exported.EncoderSource:
    if name.endswith(".npz"):
        return Trial(Path(name))
    folder, _, index = name.rpartition(":")
    return Ladder.open(folder)[int(index)]


def tables() -> dict[str, str]:
    """The page's, by marker."""
    encoders = json.loads(RESULT.read_bytes())["encoders"]
    names = list(next(iter(encoders.values()))["batched"])

    def line(encoder: str, way: str) -> tuple[str, ...]:
        found = encoders[encoder][way]
        return f"{encoder}, {WAYS[way]}", *(f"{found[name]['images_a_second']['median']:,.0f}" for name in names)

    lines = (line(encoder, way) for encoder in encoders for way in WAYS)
    return {"host": markdown(("", *(f">{name}" for name in names)), lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="SOURCE")
    parser.add_argument("--images", required=True, metavar="SPEC", help="such as npz:cifar10.npz")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = data.load(options.images)
    result = {
        "command": f"python benchmarks/host_speed.py {' '.join(Path(s).name for s in options.sources)} "
        f"--images {options.images.rpartition('/')[2]} --repeats {options.repeats}",
        "measured": "processor seconds (time.process_time), one thread",
        "images": IMAGES,
        "repeats": options.repeats,
        "compiler": ZIG.version,
        "processor": re.search(r"cpu\.(\w+),", this_machine())[1],
        **provenance(*PACKAGES),
        "encoders": {},
    }
    for name in options.sources:
        source = open_source(name)
        with tempfile.TemporaryDirectory() as folder:
            bundle = exported.export_encoder(source, images.train, Path(folder) / "b", max_drop=100, optimize="speed")
            row = measured(bundle, source, images.test.images[:IMAGES], options.repeats)
        result["encoders"][Path(name).name] = row
        write_json(RESULT, result)
    write_atomically(PAGE, filled(PAGE.read_text(), tables()).encode())


if __name__ == "__main__":
    main()
