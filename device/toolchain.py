"""The C compilers, with flags that keep results bit-identical: zig from PyPI for the host and every Cortex-M core,
arm-none-eabi-gcc as a second opinion where it is installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
RUNTIME_SOURCES = tuple(sorted((HERE / "src").glob("*.c")))
KERNELS_SOURCE = HERE / "src" / "kernels.c"  # one of them; library.kernels_source makes that of an image
MODES_SOURCE = HERE / "src" / "modes.c"  # and library.modes_source that of a head

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wpedantic")
NUMERICS = ("-ffp-contract=off",)
FREESTANDING = (
    *("-g", "-ffreestanding", "-ffunction-sections", "-fdata-sections"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-exceptions"),
)


class ToolchainError(RuntimeError):
    """A compile or link step failed; the message is the compiler's own, the first error first."""


@dataclass(frozen=True)
class Core:
    """A Cortex-M core. `fpu` is what the compiler's __ARM_FP must say: 4 single precision, 8 double, 0 no FPU."""

    name: str
    fpu: int


CORES = {
    core.name: core
    for core in (
        Core("cortex-m0plus", fpu=0),
        Core("cortex-m3", fpu=0),
        Core("cortex-m4f", fpu=4),
        # Some M7 have double precision, an STM32F746 has not; the runtime never needs it.
        Core("cortex-m7", fpu=4),
        Core("cortex-m33", fpu=4),
        Core("cortex-m55", fpu=4 + 8),
    )
}


@dataclass(frozen=True)
class Compiler:
    """A C compiler that makes firmware: how it is called, what names each core to it, and how it compiles and links."""

    name: str
    command: tuple[str, ...]
    asks_version: tuple[str, ...]
    cores: dict[str, tuple[str, ...]]
    optimisation: str
    linking: tuple[str, ...] = ()

    @cached_property
    def version(self) -> str:
        """As results must name it, such as `zig 0.17.0`."""
        return f"{self.name} {run(self.asks_version).stdout.strip()}"

    @property
    def options(self) -> tuple[str, ...]:
        """How firmware is compiled, whatever the core."""
        return (self.optimisation, *FREESTANDING, *NUMERICS)

    def flags(self, core: Core) -> tuple[str, ...]:
        """What a result must say of how the firmware was compiled."""
        return (*self.cores[core.name], *self.options)

    def target_flags(self, core: Core) -> tuple[str, ...]:
        """What names the core to the compiler and to the sources."""
        return (*self.cores[core.name], f"-DENTROPI_FPU={core.fpu}", f'-DENTROPI_CORE="{core.name}"')

    def run(self, *arguments: str | os.PathLike[str], scratch: Path | None = None) -> None:
        """Compile or link. Raises ToolchainError with the compiler's message."""
        done = run([*self.command, *arguments], scratch)
        if done.returncode:
            raise ToolchainError(done.stderr.strip())


def _zig_core(cpu: str, abi: str = "eabihf") -> tuple[str, ...]:
    return (f"--target=thumb-freestanding-{abi}", f"-mcpu={cpu}")


def _gcc_core(cpu: str, fpu: str = "") -> tuple[str, ...]:
    return (f"-mcpu={cpu}", "-mthumb", *(("-mfloat-abi=hard", f"-mfpu={fpu}") if fpu else ("-mfloat-abi=soft",)))


_ZIG = (sys.executable, "-m", "ziglang")
# The M55 has float vectors (MVE) too, but they flush subnormal numbers to zero: other bits than everywhere else.
ZIG = Compiler(
    name="zig",
    command=(*_ZIG, "cc"),
    asks_version=(*_ZIG, "version"),
    cores={
        "cortex-m0plus": _zig_core("cortex_m0plus", "eabi"),
        "cortex-m3": _zig_core("cortex_m3", "eabi"),
        "cortex-m4f": _zig_core("cortex_m4+vfp4d16sp"),
        "cortex-m7": _zig_core("cortex_m7+fp_armv8d16sp"),
        "cortex-m33": _zig_core("cortex_m33+dsp+fp_armv8d16sp"),
        "cortex-m55": _zig_core("cortex_m55+fp_armv8d16+mve"),
    },
    optimisation="-Os",  # -O2 and -O3 triple the code size and gain nothing on sparse loops
)
GCC = Compiler(
    name="arm-none-eabi-gcc",
    command=("arm-none-eabi-gcc",),
    asks_version=("arm-none-eabi-gcc", "-dumpfullversion"),
    cores={
        "cortex-m0plus": _gcc_core("cortex-m0plus"),
        "cortex-m3": _gcc_core("cortex-m3"),
        "cortex-m4f": _gcc_core("cortex-m4", "fpv4-sp-d16"),
        "cortex-m7": _gcc_core("cortex-m7", "fpv5-sp-d16"),
        "cortex-m33": _gcc_core("cortex-m33", "fpv5-sp-d16"),
        "cortex-m55": _gcc_core("cortex-m55+nomve.fp", "auto"),
    },
    optimisation="-O2",  # -Os takes 1.6 times the instructions
    linking=("-nostartfiles",),
)


def cache_dir() -> Path:
    """Folder for built objects and zig's own cache: $ENTROPI_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropi"
    folder = Path(os.environ.get("ENTROPI_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(command: Sequence[str | os.PathLike[str]], scratch: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a compiler; the result is returned whatever the exit status. Raises ToolchainError where there is none.

    With `scratch` zig keeps what it builds in that folder, not in the cache that stays.
    """
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache_dir() / "zig")}
    if scratch:
        environment["ZIG_LOCAL_CACHE_DIR"] = str(scratch)
    try:
        return subprocess.run([*map(os.fspath, command)], capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise ToolchainError(f"{command[0]} is not installed; install it, or compile with zig") from None


def zig(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    """Run `zig ARGUMENTS`; the result is returned whatever the exit status."""
    return run([*_ZIG, *arguments])


@cache
def this_machine() -> str:
    """zig's version, and the processor and system that it compiles for where no other is named, features included."""
    return zig("build-obj", "--show-builtin").stdout


def build_shared(name: str, sources: tuple[Path, ...], flags: tuple[str, ...] = ()) -> Path:
    """Compile C sources to a shared library for this processor; built once for each content of sources, headers.

    Raises ToolchainError with the compiler's message.
    """
    beside = {header for source in sources for header in source.parent.glob("*.h")}
    inputs = [*sources, *sorted(INCLUDE.glob("*.h")), *sorted(beside)]
    arguments = ["-O2", *WARNINGS, *NUMERICS, *flags]
    key = hashlib.sha256("\0".join([this_machine(), *arguments]).encode())
    for path in inputs:
        key.update(path.read_bytes())
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    library = cache_dir() / f"{name}-{key.hexdigest()[:16]}{suffix}"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            ZIG.run("-shared", "-fPIC", *arguments, f"-I{INCLUDE}", *sources, "-o", built)
            built.replace(library)
    return library


def compile_object(core: Core, source: Path, *includes: Path, compiler: Compiler = ZIG) -> Path:
    """Compile one C source for a core, its headers beside it, among the runtime's or in `includes`; built once for each
    content of the source and these headers.

    Raises ToolchainError with the compiler's message.
    """
    folders = (INCLUDE, *includes)
    arguments = [
        *(*compiler.target_flags(core), *compiler.options, *WARNINGS),
        *(f"-I{folder}" for folder in folders),
    ]
    key = hashlib.sha256("\0".join([compiler.version, *arguments]).encode())
    for path in (source, *(header for folder in (*folders, source.parent) for header in sorted(folder.glob("*.h")))):
        key.update(path.read_bytes())
    built = cache_dir() / f"{core.name}-{source.stem}-{key.hexdigest()[:16]}.o"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            fresh = Path(folder) / built.name
            compiler.run(*arguments, "-c", source, "-o", fresh)
            fresh.replace(built)
    return built


def link_firmware(
    core: Core, objects: list[Path], image: bytes, assembly: Path, script: Path, folder: Path, compiler: Compiler = ZIG
) -> Path:
    """Link objects and a device image into folder/firmware.elf; `assembly` includes the image as ENTROPI_IMAGE.

    Raises ToolchainError with the linker's message.
    """
    # zig caches an assembly by its text and name alone, so the image's content has to show in the command.
    name = f"image-{hashlib.sha256(image).hexdigest()[:16]}.bin"
    (folder / name).write_bytes(image)
    elf = folder / "firmware.elf"
    compiler.run(
        *(*compiler.target_flags(core), f'-DENTROPI_IMAGE="{name}"', f"-I{folder}", assembly, *objects),
        *(*compiler.linking, "-T", script, "-Wl,--gc-sections", "-Wl,-e,Reset_Handler", "-o", elf),
        scratch=folder / "zig",
    )
    return elf
