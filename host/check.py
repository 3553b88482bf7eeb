"""`entropi-export check`: everything in a bundle's folder runs the golden images once more, and is compared.

tflite-micro on the .tflite file, the C runtime in this process and the firmware on an emulated board must equal the
golden vectors byte for byte, layer by layer; encoder.onnx must equal PyTorch's features but for float32's rounding.
encoder_int8.onnx, the int8 features and LiteRT's reference kernels round in ways of their own: how far they are off is
reported.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from entropi.device import SMALLEST_HEAD, Bundle, BundleError, DeviceError, HostDevice, describe, measure
from entropi.device.bundle import GOLDEN, IMAGE, REPORT
from entropi.export import ConversionError, UnsupportedError
from entropi.export.encoder import ONNX, ONNX_INT8, TFLITE, normalise
from entropi.export.fidelity import cosine
from entropi.export.onnx import TOLERANCE, run_onnx
from entropi.export.reader import from_tflite
from entropi.export.removal import remove
from entropi.export.tflm import LITERT, TFLM, run_layers
from entropi.firmware_sim import Board, BoardError, board
from entropi.host.layers import open_encoder
from entropi.host.progress import Progress
from entropi.host.tables import table

FEATURES = "features"
TFLITE_MICRO, LITERT_REFERENCE, HOST = "tflite-micro", "LiteRT's reference kernels", "C on this host"

EQUAL, CLOSE, DEVIATES, DIFFERS, FAILED, LEFT_OUT = "equal", "close", "deviates", "differs", "failed", "left out"
MISSING = "the file is missing; export again"
STYLES = {EQUAL: "green", CLOSE: "green", DIFFERS: "bold red", FAILED: "bold red"}

Outputs = Mapping[str, np.ndarray | Sequence[int]]


@dataclass(frozen=True)
class Finding:
    """What one runner was found to do with one file.

    `result`: equal; close, inside the tolerance; deviates, as it may; differs; failed, it could not run; left out, no
    board can run it. `layer` is the first golden array that differs, such as layer_03 or features, and `name` what the
    report calls that layer.
    """

    runner: str
    file: str
    result: str
    text: str = ""
    layer: str = ""
    name: str = ""


@dataclass(frozen=True)
class Run:
    """The integer network as one runner computes it.

    `outputs` holds int8 [N, ...] by the name of the golden array, or, of values that stay on a board, the CRC-32 of
    each of the N. `instructions`: of each layer, where they can be counted. `remark`: how this run came about."""

    outputs: Outputs
    instructions: Sequence[int] = ()
    remark: str = ""

    def crcs(self, name: str) -> tuple[int, ...]:
        found = self.outputs.get(name, ())
        return (
            tuple(zlib.crc32(values.tobytes()) for values in found) if isinstance(found, np.ndarray) else tuple(found)
        )

    def difference(self, golden: Run, name: str) -> int | None:
        """The largest between any two values; None where they differ and nobody can say by how much."""
        found, expected = self.outputs.get(name), golden.outputs[name]
        if self.crcs(name) == golden.crcs(name):
            return 0
        if not isinstance(found, np.ndarray) or found.shape != expected.shape:
            return None
        return int(np.abs(found.astype(int) - expected).max())


def check(bundle: Bundle, board_name: str | Path | Board = "nucleo-f446re", progress: Progress | None = None) -> dict:
    """Compare everything in the bundle's folder; JSON-able, and `passed` says that nothing differs that must not.

    `progress` gets (steps done, steps in all, text). Raises BundleError where golden.npz cannot be read, BoardError for
    an unknown board.
    """
    on = board_name if isinstance(board_name, Board) else board(board_name)
    arrays = _golden(bundle)
    layers = sorted((name for name in arrays if name.startswith("layer_")), key=_number)
    golden = Run({name: arrays[name] for name in (*layers, FEATURES)})
    steps: list[tuple[str, str, Callable[[Bundle, np.ndarray], Run]]] = [
        (HOST, IMAGE, _on_host),
        (on.name, IMAGE, partial(_on_board, on=on)),
    ]
    if layers or (bundle.folder / TFLITE).exists():  # an encoder of pixels has no model
        steps[:0] = [
            (LITERT_REFERENCE, TFLITE, partial(_tflite, interpreter=LITERT)),
            (TFLITE_MICRO, TFLITE, partial(_tflite, interpreter=TFLM)),
        ]
    findings, runs = list(_floats(bundle, arrays)), {}
    for number, (runner, file, run) in enumerate(steps):
        if progress:
            progress(number, len(steps), runner)
        try:
            runs[runner] = run(bundle, arrays["input"])
            findings.append(_compare(runner, file, runs[runner], golden, bundle))
        except (ConversionError, UnsupportedError, DeviceError) as error:
            findings.append(Finding(runner, file, FAILED, str(error)))
        except BoardError as error:
            findings.append(Finding(runner, file, LEFT_OUT, str(error)))
    instructions = next((run.instructions for run in runs.values() if run.instructions), None)
    return {
        "bundle": str(bundle.folder),
        "name": bundle.report["name"],
        "images": len(arrays["input"]),
        "passed": not any(finding.result in (DIFFERS, FAILED) for finding in findings),
        "findings": [asdict(finding) for finding in findings],
        "suspicion": _suspicion({GOLDEN: golden, **runs}, bundle),
        "layers": [
            {
                "layer": name,
                "name": _name(bundle, name),
                "difference": {runner: run.difference(golden, name) for runner, run in runs.items()},
                "instructions": instructions and instructions[_number(name)],
            }
            for name in layers
        ],
    }


def _golden(bundle: Bundle) -> dict[str, np.ndarray]:
    arrays = bundle.golden()
    missing = {"input", FEATURES} - arrays.keys()
    if missing:
        raise BundleError(f"{bundle.folder / GOLDEN} holds no {' and no '.join(sorted(missing))}; export again")
    return arrays


def _number(name: str) -> int:
    return int(name.removeprefix("layer_"))


def _name(bundle: Bundle, array: str) -> str:
    """What the report calls the layer of a golden array."""
    layers = bundle.report["layers"]
    return layers[_number(array)]["name"] if array != FEATURES and _number(array) < len(layers) else ""


# Real numbers: PyTorch's features, where the bundle came from PyTorch.


def _floats(bundle: Bundle, arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    if "torch" not in arrays:
        return
    images, expected, p = arrays["images"], arrays["torch"], bundle.preprocessing
    same = (p(images) == arrays["input"]).all()
    yield Finding("preprocessing", REPORT, EQUAL if same else DIFFERS, layer="" if same else "input")

    inputs = normalise(images, p.mean, p.std)
    for file, judge in ((ONNX, _close), (ONNX_INT8, _cosine)):
        if not (bundle.folder / file).is_file():
            yield Finding("ONNX Runtime", file, FAILED, MISSING)
            continue
        try:
            result, text = judge(run_onnx(bundle.folder / file, inputs).reshape(expected.shape), expected)
        except Exception as error:  # ONNX Runtime's have no base class of their own
            result, text = FAILED, str(error).splitlines()[0]
        yield Finding("ONNX Runtime", file, result, text)


def _close(found: np.ndarray, expected: np.ndarray) -> tuple[str, str]:
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12))
    return CLOSE if difference <= TOLERANCE else DIFFERS, f"{difference:.1e} of PyTorch's largest feature"


def _cosine(found: np.ndarray, expected: np.ndarray) -> tuple[str, str]:
    cosines = cosine(found, expected)
    return DEVIATES, f"cosine to PyTorch's features {cosines['mean']:.4f}, least {cosines['min']:.4f}"


# The integer network.


@lru_cache(maxsize=1)
def _places(model: bytes) -> dict[str, tuple[int, np.ndarray]]:
    """Where the .tflite model has what a golden array holds: the number of a tensor, and which of its channels."""
    network, removed = remove(from_tflite(model))
    writers = network.last_writers()
    places = {f"layer_{number:02d}": (tensor, removed.channels[tensor]) for tensor, number in writers.items()}
    return places | {FEATURES: (network.output, removed.channels[network.output])}


def _tflite(bundle: Bundle, inputs: np.ndarray, interpreter: str) -> Run:
    path = bundle.folder / TFLITE
    if not path.is_file():
        raise ConversionError(MISSING)
    model = path.read_bytes()
    places = _places(model)
    found = run_layers(model, inputs, list({tensor for tensor, _ in places.values()}), interpreter)
    outputs = {name: found[tensor][:, channels] for name, (tensor, channels) in places.items()}
    return Run(outputs | {FEATURES: outputs[FEATURES].reshape(len(inputs), -1)})


def _fit(bundle: Bundle, inputs: np.ndarray) -> None:
    """Raises DeviceError where the image is damaged, or takes other inputs than the golden ones."""
    info = describe(bundle.image)
    shape = info.channels, info.height, info.width
    if shape != inputs.shape[1:]:
        wanted, given = ("x".join(map(str, s)) for s in (shape, inputs.shape[1:]))
        raise DeviceError(f"{IMAGE} takes inputs of {wanted} and {GOLDEN} holds inputs of {given}; export again")


def _on_host(bundle: Bundle, inputs: np.ndarray) -> Run:
    _fit(bundle, inputs)
    outputs: dict[str, list[np.ndarray]] = {}
    with HostDevice(bundle, measure(bundle.image, SMALLEST_HEAD).total, head=SMALLEST_HEAD) as device:
        for values in inputs:
            for number, layer in enumerate(device.encode_layers(values)):
                outputs.setdefault(f"layer_{number:02d}", []).append(layer)
            outputs.setdefault(FEATURES, []).append(device.encode(values))
    return Run({name: np.stack(found) for name, found in outputs.items()})


def _on_board(bundle: Bundle, inputs: np.ndarray, on: Board) -> Run:
    _fit(bundle, inputs)
    with open_encoder(bundle, on) as device:
        layers = [device.run_layers(values) for values in inputs]
        outputs: dict[str, np.ndarray | list[int]] = {
            f"layer_{number:02d}": [run.crc for run in runs] for number, runs in enumerate(zip(*layers, strict=True))
        }
        outputs[FEATURES] = np.stack([device.encode(values) for values in inputs])
        remark = "" if device.board == on else f"on {device.board.name}, as {on.name} is too small"
        return Run(outputs, [run.ticks for run in layers[0]], remark)


def _compare(runner: str, file: str, run: Run, golden: Run, bundle: Bundle) -> Finding:
    differences = {name: run.difference(golden, name) for name in golden.outputs}
    first = next((name for name, difference in differences.items() if difference != 0), None)
    if first is None:
        return Finding(runner, file, EQUAL, run.remark)
    text = run.remark
    pairs = [(run.outputs.get(name), expected) for name, expected in golden.outputs.items()]
    if None not in differences.values() and all(isinstance(values, np.ndarray) for values, _ in pairs):
        wrong, values = (sum(counts) for counts in zip(*(((a != b).sum(), b.size) for a, b in pairs), strict=True))
        text = f"{wrong:,} of {values:,} values, by up to {max(differences.values())} of 255 steps"
    result = DEVIATES if runner == LITERT_REFERENCE else DIFFERS
    return Finding(runner, file, result, text, first, _name(bundle, first))


def _suspicion(runs: Mapping[str, Run], bundle: Bundle) -> dict | None:
    """Which files are the odd ones out where the runs first part, LiteRT's aside; None where they all agree.

    Most runs are right, and where there are as many on either side, tflite-micro is.
    """
    runs = {runner: run for runner, run in runs.items() if runner != LITERT_REFERENCE}
    for name in runs[GOLDEN].outputs:
        sides: dict[tuple[int, ...], list[str]] = {}
        for runner, run in runs.items():
            sides.setdefault(run.crcs(name), []).append(runner)
        right = max(sides.values(), key=lambda side: (len(side), TFLITE_MICRO in side))
        wrong = [runner for runner in runs if runner not in right]
        if wrong:
            return {
                "files": _files(wrong, runs),
                "runners": wrong,
                "against": right,
                "layer": name,
                "name": _name(bundle, name),
            }
    return None


def _files(wrong: Sequence[str], runs: Mapping[str, Run]) -> list[str]:
    """The files that only the runs that are wrong have read."""
    sources = {GOLDEN: GOLDEN, TFLITE_MICRO: TFLITE}
    devices = [runner for runner in runs if runner not in sources]
    files = [file for runner, file in sources.items() if runner in wrong]
    if any(runner in wrong for runner in devices):
        files.append(IMAGE if all(runner in wrong for runner in devices) else "the C runtime as compiled there")
    return files


def render(content: dict) -> RenderableType:
    """Who computes what the golden vectors say, and the verdict."""
    lines = (
        (
            f"{finding['runner']}, {finding['file']}",
            Text(": ".join(filter(None, (finding["result"], finding["text"]))), STYLES.get(finding["result"], "")),
            _place(finding),
        )
        for finding in content["findings"]
    )
    title = f"{content['name']} in {content['bundle']}, {content['images']} golden images"
    return Group(table(title, ("", "result", "first to differ"), lines), _verdict(content))


def _place(of: dict) -> str:
    return f"{of['layer']} {of['name']}".strip()


def _verdict(content: dict) -> Text:
    if content["passed"]:
        return Text("Passed: nothing differs that must not.", style="green")
    suspicion = content["suspicion"]
    if suspicion is None:
        return Text("Failed; see above.", style="bold red")
    files, runners, against = (" and ".join(suspicion[part]) for part in ("files", "runners", "against"))
    text = f"Failed. Look at {files}: {runners} against {against}, first in {_place(suspicion)}."
    return Text(text, style="bold red")
