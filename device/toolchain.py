"""The C compiler: zig from PyPI, for the host and every Cortex-M core, with flags that keep results bit-identical."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"
RUNTIME_SOURCES = tuple(sorted((HERE / "src").glob("*.c")))

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wpedantic")
NUMERICS = ("-ffp-contract=off",)
# -O2 and -O3 triple the code size and gain nothing on sparse loops.
FIRMWARE_FLAGS = (
    *("-Os", "-g", "-ffreestanding", "-ffunction-sections", "-fdata-sections"),
    *("-fno-unwind-tables", "-fno-asynchronous-unwind-tables", "-fno-exceptions"),
)


class ToolchainError(RuntimeError):
    """A compile or link step failed; the message is the compiler's own, the first error first."""


@dataclass(frozen=True)
class Core:
    """How zig names a Cortex-M core. `fpu` says that it has a single-precision FPU."""

    name: str
    target: str
    cpu: str
    fpu: bool


CORES = {
    "cortex-m4f": Core("cortex-m4f", "thumb-freestanding-eabihf", "cortex_m4+vfp4d16sp", fpu=True),
}


def cache_dir() -> Path:
    """Folder for built objects and zig's own cache: $ENTROPI_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entropi"
    folder = Path(os.environ.get("ENTROPI_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def zig(*arguments: str | os.PathLike[str], scratch: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `zig ARGUMENTS`; the result is returned whatever the exit status.

    With `scratch` zig keeps what it builds in that folder, not in the cache that stays.
    """
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache_dir() / "zig")}
    if scratch:
        environment["ZIG_LOCAL_CACHE_DIR"] = str(scratch)
    command = [sys.executable, "-m", "ziglang", *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@cache
def compiler_version() -> str:
    """The compiler as results must name it, such as `zig 0.17.0`."""
    return f"zig {zig('version').stdout.strip()}"


def build_shared(name: str, sources: tuple[Path, ...], flags: tuple[str, ...] = ()) -> Path:
    """Compile C sources to a shared library for this machine; built once for each content of sources, headers.

    Raises ToolchainError with the compiler's message.
    """
    beside = {header for source in sources for header in source.parent.glob("*.h")}
    inputs = [*sources, *sorted(INCLUDE.glob("*.h")), *sorted(beside)]
    arguments = ["-O2", *WARNINGS, *NUMERICS, *flags]
    key = hashlib.sha256("\0".join([compiler_version(), sys.platform, *arguments]).encode())
    for path in inputs:
        key.update(path.read_bytes())
    suffix = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
    library = cache_dir() / f"{name}-{key.hexdigest()[:16]}{suffix}"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            built = Path(folder) / library.name
            done = zig("cc", "-shared", "-fPIC", *arguments, f"-I{INCLUDE}", *sources, "-o", built)
            if done.returncode:
                raise ToolchainError(done.stderr.strip())
            built.replace(library)
    return library


def compile_object(core: Core, source: Path, *includes: Path) -> Path:
    """Compile one C source for a core, its headers beside it, among the runtime's or in `includes`; built once for each
    content of the source and these headers.

    Raises ToolchainError with the compiler's message.
    """
    folders = (INCLUDE, *includes)
    arguments = [*target_flags(core), *FIRMWARE_FLAGS, *WARNINGS, *NUMERICS, *(f"-I{folder}" for folder in folders)]
    key = hashlib.sha256("\0".join([compiler_version(), *arguments]).encode())
    for path in (source, *(header for folder in (*folders, source.parent) for header in sorted(folder.glob("*.h")))):
        key.update(path.read_bytes())
    built = cache_dir() / f"{core.name}-{source.stem}-{key.hexdigest()[:16]}.o"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=built.parent) as folder:
            fresh = Path(folder) / built.name
            done = zig("cc", *arguments, "-c", source, "-o", fresh)
            if done.returncode:
                raise ToolchainError(done.stderr.strip())
            fresh.replace(built)
    return built


def link_firmware(core: Core, objects: list[Path], image: bytes, assembly: Path, script: Path, folder: Path) -> Path:
    """Link objects and a device image into folder/firmware.elf; `assembly` includes the image as ENTROPI_IMAGE.

    Raises ToolchainError with the linker's message.
    """
    # zig caches an assembly by its text and name alone, so the image's content has to show in the command.
    name = f"image-{hashlib.sha256(image).hexdigest()[:16]}.bin"
    (folder / name).write_bytes(image)
    elf = folder / "firmware.elf"
    done = zig(
        *("cc", *target_flags(core), f'-DENTROPI_IMAGE="{name}"', f"-I{folder}", assembly, *objects),
        *("-T", script, "-Wl,--gc-sections", "-Wl,-e,Reset_Handler", "-o", elf),
        scratch=folder / "zig",
    )
    if done.returncode:
        raise ToolchainError(done.stderr.strip())
    return elf


def target_flags(core: Core) -> tuple[str, ...]:
    """What names the core to the compiler and to the sources."""
    names = (f"-DENTROPI_FPU={int(core.fpu)}", f'-DENTROPI_CORE="{core.name}"')
    return ("-target", core.target, f"-mcpu={core.cpu}", *names)
