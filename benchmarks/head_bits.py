"""The same head, bit for bit, after 10,000 steps: on the host, on every core, by every compiler, on both emulators.

    python benchmarks/head_bits.py [--steps N]

Each memory mode learns N + 1 random samples, and after each but the first one that replay kept: N batches of two. The
firmwares all get the same requests, byte for byte. A loss or a parameter that differs anywhere fails the run. gcc,
arm-none-eabi-gcc and qemu-system-arm take part where they are installed. Writes results/head_bits.json.
"""

from __future__ import annotations

import argparse
import ctypes as c
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from entropi.device import Bundle, HeadConfig, measure
from entropi.device.files import write_json
from entropi.device.library import CSelf, c_head, raise_for
from entropi.device.toolchain import CORES, GCC, INCLUDE, NUMERICS, RUNTIME_SOURCES, ZIG, build_shared
from entropi.firmware_sim.build import Firmware, build_firmware
from entropi.firmware_sim.emulator import MODELS, Emulator
from entropi.firmware_sim.protocol import REPLY_BIT, Command
from entropi.firmware_sim.qemu import command
from entropi.firmware_sim.session import FramedDevice
from entropi.host.provenance import provenance

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from heads import head_bundle  # noqa: E402
from qemu import MACHINES, Recorder, answers  # noqa: E402

RESULT = ROOT / "results" / "head_bits.json"
FEATURES, SEED = 64, 0
HEAD = HeadConfig(
    classes=5,
    batch=2,
    learning_rate=1.0,
    weight_decay=1e-3,
    learning_rate_decay=1e-3,
    new_classes=1,
    replay=9,
    seed=3,
    steps=9000,
)
HEADS = [replace(HEAD, bytes_per_parameter=n, momentum=0.9 if n > 4 else 0.0) for n in (12, 8, 4, 2)]
SHORT_MULTIPLY = "-DENTROPI_SHORT_MULTIPLY=1"
Samples = list[tuple[np.ndarray, int]]


def lesson(count: int) -> Samples:
    """int8 features [FEATURES] around one mean a class, and a label."""
    rng = np.random.default_rng(SEED)
    labels = rng.integers(0, HEAD.classes, count)
    means = rng.normal(0, 12, (HEAD.classes, FEATURES))
    values = (means[labels] + rng.normal(0, 40, (count, FEATURES))).round().clip(-128, 127).astype(np.int8)
    return list(zip(values, labels.tolist(), strict=True))


def fingerprint(losses: bytes, head: bytes) -> dict[str, str]:
    """CRC-32 of every sample's float32 loss, and of the head's float32 parameters."""
    return {"losses_crc32": f"{zlib.crc32(losses):08x}", "head_crc32": f"{zlib.crc32(head):08x}"}


def host_builds(folder: Path) -> Iterator[tuple[dict, c.CDLL]]:
    """The runtime as a library of this process, by every compiler of this machine."""
    for flags in ((), (SHORT_MULTIPLY,)):
        library = c.CDLL(str(build_shared("runtime", RUNTIME_SOURCES, flags)))
        yield {"on": "host", "compiler": ZIG.version, "flags": ["-O2", *NUMERICS, *flags]}, library
    if shutil.which("gcc"):
        version = subprocess.check_output(["gcc", "-dumpfullversion"], text=True).strip()
        flags, library = ["-O3", *NUMERICS], folder / "runtime.so"
        subprocess.run(
            ["gcc", "-std=c99", "-shared", "-fPIC", *flags, f"-I{INCLUDE}", *RUNTIME_SOURCES, "-o", library], check=True
        )
        yield {"on": "host", "compiler": f"gcc {version}", "flags": flags}, c.CDLL(str(library))


def on_host(runtime: c.CDLL, bundle: Bundle, head: HeadConfig, samples: Samples) -> dict[str, str]:
    """Learn in this process."""
    size = measure(bundle.image, head).total
    arena, self, loss, losses = (c.c_uint64 * (size // 8))(), CSelf(), c.c_float(), bytearray()
    image = c.create_string_buffer(bundle.image, len(bundle.image))
    opened = (image, c.c_size_t(len(bundle.image)), c.byref(c_head(head)), arena, c.c_size_t(size), None)
    raise_for(runtime.entropi_open(c.byref(self), *opened))
    for values, label in samples:
        given = (values.ctypes.data_as(c.c_void_p), c.c_size_t(values.size), c.c_uint16(label), c.byref(loss))
        raise_for(runtime.entropi_learn(c.byref(self), *given))
        losses += bytes(loss)
    parameters = np.empty(head.classes * (FEATURES + 1), np.float32)
    wanted = (c.c_size_t(0), c.c_size_t(parameters.size), parameters.ctypes.data_as(c.c_void_p))
    raise_for(runtime.entropi_head(c.byref(self), *wanted))
    return fingerprint(bytes(losses), parameters.tobytes())


def record(firmware: Firmware, bundle: Bundle, head: HeadConfig, arena: int, samples: Samples) -> bytes:
    """The requests that teach a firmware and read its head."""
    recorder = Recorder(Emulator(firmware.board, firmware.elf))
    with FramedDevice(bundle, recorder, head, arena) as device:
        for values, label in samples:
            device.learn_features(values, label)
        device.head()
    return recorder.requests


def on_unicorn(firmware: Firmware, requests: bytes) -> bytes:
    emulator = Emulator(firmware.board, firmware.elf)
    emulator.send(requests)
    return emulator.receive()


def on_qemu(firmware: Firmware, requests: bytes) -> bytes:
    with tempfile.TemporaryDirectory(prefix="entropi-") as folder:
        elf = Path(folder) / "firmware.elf"
        elf.write_bytes(firmware.elf)
        done = subprocess.run([*command(firmware.board), "-kernel", elf], input=requests, capture_output=True)
        if done.returncode:
            raise SystemExit(f"{firmware.board.name} on QEMU: {done.stderr.decode().strip()}")
        return done.stdout


def heard(replies: bytes) -> dict[str, str]:
    """The fingerprint that a firmware's replies give."""
    parts = {Command.LEARN | REPLY_BIT: b"", Command.HEAD | REPLY_BIT: b""}
    for number, status, data in answers(replies):
        raise_for(status)
        if number in parts:
            parts[number] += data
    return fingerprint(*parts.values())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    samples, bundle = lesson(options.steps + 1), head_bundle(FEATURES)
    arena = max(measure(bundle.image, head).total for head in HEADS)
    rows: list[dict] = []

    def add(row: dict, head: HeadConfig, found: dict[str, str]) -> None:
        rows.append({"bytes_per_parameter": head.bytes_per_parameter, **row, **found})
        print(*(value for name, value in rows[-1].items() if name != "flags"), flush=True)

    with tempfile.TemporaryDirectory(prefix="entropi-") as folder:
        for row, runtime in host_builds(Path(folder)):
            for head in HEADS:
                add(row, head, on_host(runtime, bundle, head, samples))

    compilers = [compiler for compiler in (ZIG, GCC) if shutil.which(compiler.command[0])]
    firmwares = [
        build_firmware(bundle.image, board, arena, compiler=compiler)
        for compiler in compilers
        for board in MACHINES.values()
    ]
    first = next(firmware for firmware in firmwares if firmware.board.core in MODELS)
    requests = [record(first, bundle, head, arena, samples) for head in HEADS]
    emulators = {"Unicorn": on_unicorn} | ({"QEMU": on_qemu} if shutil.which("qemu-system-arm") else {})
    runs = [
        (name, firmware, head, stream)
        for firmware in firmwares
        for name in emulators
        if name == "QEMU" or firmware.board.core in MODELS
        for head, stream in zip(HEADS, requests, strict=True)
    ]
    with ThreadPoolExecutor(2) as pool:
        replies = pool.map(lambda run: emulators[run[0]](run[1], run[3]), runs)
        for (name, firmware, head, _), found in zip(runs, replies, strict=True):
            flags = list(firmware.compiler.flags(CORES[firmware.board.core]))
            row = {"on": name, "core": firmware.board.core, "compiler": firmware.compiler.version, "flags": flags}
            add(row, head, heard(found))

    # 12 and 8 bytes a parameter hold the same weights.
    found = {n: {(r["losses_crc32"], r["head_crc32"]) for r in rows if r["bytes_per_parameter"] in n} for n in MODES}
    different = [str(n) for n, prints in found.items() if len(prints) > 1]
    if different:
        raise SystemExit(f"the heads of {', '.join(different)} bytes a parameter differ")
    tools = ["qemu-system-arm --version"] if "QEMU" in emulators else []
    content = {
        "command": f"python benchmarks/head_bits.py --steps {options.steps}",
        "claim": "every loss and every parameter of the head is the same, bit for bit",
        "steps": options.steps,
        "features": FEATURES,
        "seed": SEED,
        "heads": [asdict(head) for head in HEADS],
        **provenance("ziglang", "unicorn"),
        "qemu": [subprocess.check_output(tool.split(), text=True).splitlines()[0] for tool in tools],
        "rows": rows,
    }
    write_json(options.out, content)


MODES = ((12, 8), (4,), (2,))


if __name__ == "__main__":
    main()
