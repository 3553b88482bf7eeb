"""What makes a bundle a library for firmware: the runtime's C beside the image's, build files and a README."""

from __future__ import annotations

from importlib.metadata import distribution, version
from pathlib import Path

from entropi.device.files import write_atomically
from entropi.device.library import kernels_source
from entropi.device.toolchain import INCLUDE, KERNELS_SOURCE, RUNTIME_SOURCES
from entropi.export.c_source import c_header, c_source

TEMPLATES = Path(__file__).resolve().parent / "templates"


def write_sources(out: Path, image: bytes) -> list[Path]:
    """Write into the bundle's folder `out` what CMake, PlatformIO, Arduino and Zephyr need to link `image`.

    All C lies in src/, where each of the four looks for sources and headers alike, and its licence with it. Returns
    the files written. Raises DeviceError where `image` is none.
    """
    runtime = (*INCLUDE.glob("*.h"), *RUNTIME_SOURCES[0].parent.glob("*.[ch]"))
    files = {f"src/{path.name}": path.read_bytes() for path in runtime}
    files["src/entropi_image.c"] = c_source(image).encode()
    files["src/entropi_image.h"] = c_header(image).encode()
    files[f"src/{KERNELS_SOURCE.name}"] = kernels_source(image).encode()
    files["src/LICENSE"] = licence().encode()
    sources = "\n".join(f"  {name}" for name in sorted(files) if name.endswith(".c"))
    for path in TEMPLATES.rglob("*.*"):
        text = path.read_text().replace("@VERSION@", version("entropi")).replace("@SOURCES@", sources)
        files[path.relative_to(TEMPLATES).as_posix()] = text.encode()
    for name, content in sorted(files.items()):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, content)
    return [out / name for name in sorted(files)]


def licence() -> str:
    """The project's own."""
    metadata = distribution("entropi")  # in a checkout it may be a folder beside the file itself
    return metadata.read_text("licenses/LICENSE") or metadata.read_text("../LICENSE")
