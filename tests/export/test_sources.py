"""The exported folder in a firmware's build: the README's own text is built, linked and run."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import residual_network, write

from entropi.device import Bundle, HeadConfig, HostDevice, describe, measure
from entropi.device.bundle import Preprocessing
from entropi.device.library import kernels_source
from entropi.device.toolchain import CORES, INCLUDE, KERNELS_SOURCE, RUNTIME_SOURCES, ZIG, build_shared, cache_dir, zig
from entropi.export.sources import write_sources

# The numbers of the README's main.
HEAD = HeadConfig(
    classes=10, batch=4, bytes_per_parameter=8, learning_rate=1.4, momentum=0.9, learning_rate_decay=4 / 500
)
# fast-math stands for a project's careless flags: the library has to give the same bits all the same.
FLAGS = "-Wall -Wextra -Wpedantic -Werror -ffast-math"
ARM_GCC = shutil.which("arm-none-eabi-gcc")
ARM_GCC_FLAGS = "-mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 --specs=nosys.specs"
# Samples come as one byte of class and the input; what is shown goes out exactly.
HOST_PORT = r"""
#include <stdio.h>
#include <stdlib.h>
#include "entropi_image.h"
int next_sample(int8_t *input);
void show(uint16_t label, float probability);
int next_sample(int8_t *input)
{
    const int known = getchar();
    if (known == EOF)
        exit(0);
    if (fread(input, 1, ENTROPI_IMAGE_INPUT_BYTES, stdin) != ENTROPI_IMAGE_INPUT_BYTES)
        exit(2);
    return (signed char)known;
}
void show(uint16_t label, float probability) { printf("%d %a\n", label, (double)probability); }
"""
BARE_PORT = r"""
#include <stdint.h>
int next_sample(int8_t *input);
void show(uint16_t label, float probability);
int next_sample(int8_t *input) { return input[0]; }
void show(uint16_t label, float probability) { *(volatile float *)0x20000000 = probability + label; }
"""
# What Zephyr's cmake/modules/extensions.cmake does with a module's library, as far as ours asks.
ZEPHYR = """
add_library(zephyr_interface INTERFACE)
macro(zephyr_library_named name)
  add_library(${name} STATIC "")
  target_link_libraries(${name} PUBLIC zephyr_interface)
  set(library ${name})
endmacro()
macro(zephyr_library_sources)
  target_sources(${library} PRIVATE ${ARGN})
endmacro()
macro(zephyr_library_compile_options)
  target_compile_options(${library} PRIVATE ${ARGN})
endmacro()
macro(zephyr_include_directories folder)
  target_include_directories(zephyr_interface INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/${folder})
endmacro()
"""


@pytest.fixture(scope="module")
def image() -> bytes:
    return write(residual_network(0))


@pytest.fixture(scope="module")
def folder(image, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "not there yet"
    written = write_sources(out, image)
    assert sorted(written) == sorted(path for path in out.rglob("*") if path.is_file())
    return out


@pytest.fixture(scope="module")
def readme(folder) -> dict[str, list[str]]:
    """The README's code, by language."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", (folder / "README.md").read_text(), re.S)
    return {name: [text for language, text in blocks if language == name] for name, _ in blocks}


def script(path: Path, tool: str, *arguments: str) -> Path:
    """A command of one word that runs a tool of zig, since that is how CMake wants its compilers."""
    words = " ".join(f"'{word}'" for word in (sys.executable, "-m", "ziglang", tool, *arguments))
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)
    return path


def build(project: Path, folder: Path, readme: dict, port: str, definitions: dict, prelude: str = "") -> Path:
    """A firmware made of the README's main, its lines of CMake, the folder and a port; returns the ELF."""
    shutil.copytree(folder, project / "encoder")
    (project / "main.c").write_text(readme["c"][0])
    (project / "port.c").write_text(port)
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(firmware C)\nadd_executable(firmware main.c port.c)\n"
        + prelude
        + readme["cmake"][0]
    )
    of_the_project = {"CMAKE_C_FLAGS": FLAGS, "CMAKE_BUILD_TYPE": "MinSizeRel", "CMAKE_UNITY_BUILD": "ON"}
    cmake(project, {**of_the_project, **definitions})
    return project / "build" / "firmware"


def zig_tools(project: Path, *flags: str) -> dict:
    """CMake's definitions for zig from PyPI."""
    project.mkdir(exist_ok=True)
    return {
        "CMAKE_C_COMPILER": script(project / "cc", "cc", *flags),
        "CMAKE_AR": script(project / "ar", "ar"),
        "CMAKE_RANLIB": script(project / "ranlib", "ranlib"),
    }


def cmake(source: Path, definitions: dict) -> None:
    """Configure and build with CMake and Ninja from PyPI, in source/build."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": tools, "ZIG_GLOBAL_CACHE_DIR": str(cache_dir() / "zig")}
    arguments = [f"-D{name}={value}" for name, value in definitions.items()]
    for command in (["-G", "Ninja", "-S", source, "-B", source / "build", *arguments], ["--build", source / "build"]):
        done = subprocess.run(["cmake", *command], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr


def lesson(image: bytes) -> list[tuple[int, np.ndarray]]:
    """Samples as main takes them: classes to learn, in batches that are not always full, and -1 to predict."""
    rng = np.random.default_rng(1)
    info = describe(image)
    shape = (info.channels, info.height, info.width)
    known = [int(k) for k in rng.integers(0, HEAD.classes, 70)]
    for at in range(65, 0, -5):
        known.insert(at, -1)
    return [(k, rng.integers(-128, 128, shape).astype(np.int8)) for k in known]


def on_host(image: bytes) -> list[tuple[int, float]]:
    """What the host's runtime predicts in that lesson."""
    bundle = Bundle(Path(), image, {}, Preprocessing((0.0,), (1.0,), 1.0, 0))
    device = HostDevice(bundle, measure(image, HEAD).total, head=HEAD)
    shown = []
    for known, values in lesson(image):
        features = device.encode(values)
        if known >= 0:
            device.learn_features(features, known)
        else:
            device.flush()
            shown.append(device.predict_features(features))
    return shown


@pytest.mark.parametrize(
    ("language", "prelude"),
    [("-std=c99", ""), ("-xc++ -std=c++20", ""), ("-std=c99", ZEPHYR)],
    ids=["c", "c++", "zephyr"],
)
def test_the_readmes_main_predicts_as_the_host(image, folder, readme, tmp_path, language, prelude):
    options = f"target_compile_options(firmware PRIVATE {language})\n"
    definitions = zig_tools(tmp_path / "firmware")
    firmware = build(tmp_path / "firmware", folder, readme, HOST_PORT, definitions, prelude + options)
    data = b"".join(known.to_bytes(1, signed=True) + values.tobytes() for known, values in lesson(image))
    done = subprocess.run([firmware], input=data, capture_output=True, check=True)
    shown = [line.split() for line in done.stdout.decode().splitlines()]
    expected = on_host(image)
    assert [(int(label), float.fromhex(probability)) for label, probability in shown] == expected
    assert len(set(expected)) > 5, "predictions that are all alike prove nothing"


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_the_readmes_main_links_for_every_core_with_zig(folder, readme, tmp_path, core):
    definitions = zig_tools(tmp_path / "firmware", *ZIG.target_flags(core), "-ffreestanding")
    definitions["CMAKE_EXE_LINKER_FLAGS"] = "-Wl,-e,main"
    assert_arm(build(tmp_path / "firmware", folder, readme, BARE_PORT, definitions | bare()))


@pytest.mark.skipif(
    not ARM_GCC,
    reason="arm-none-eabi-gcc is not installed (Debian: gcc-arm-none-eabi libnewlib-arm-none-eabi)",
)
def test_the_readmes_main_links_with_arm_gcc(folder, readme, tmp_path):
    (tmp_path / "firmware").mkdir()
    definitions = {"CMAKE_C_COMPILER": ARM_GCC, "CMAKE_C_FLAGS": f"{FLAGS} {ARM_GCC_FLAGS}", **bare()}
    assert_arm(build(tmp_path / "firmware", folder, readme, BARE_PORT, definitions))


def bare() -> dict:
    """CMake's definitions for a microcontroller."""
    return {"CMAKE_SYSTEM_NAME": "Generic", "CMAKE_TRY_COMPILE_TARGET_TYPE": "STATIC_LIBRARY"}


def assert_arm(firmware: Path) -> None:
    header = firmware.read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and int.from_bytes(header[18:20], "little") == 40


def test_the_folder_builds_on_its_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "encoder")
    cmake(tmp_path / "encoder", {"CMAKE_C_FLAGS": FLAGS, **zig_tools(tmp_path)})
    assert (tmp_path / "encoder" / "build" / "libentropi.a").stat().st_size > len("!<arch>\n")


def test_an_arena_too_small_does_not_compile(folder, readme, tmp_path):
    main, budget = readme["c"]
    size = "ENTROPI_IMAGE_ARENA_BYTES(CLASSES, BATCH, BYTES_PER_PARAMETER, REPLAY)]"
    assert size in main
    source = tmp_path / "main.c"
    for needed, refused in ((size, False), (size.replace("]", " - 1]"), True)):
        source.write_text(main.replace(size, needed) + budget)
        done = zig("cc", "-std=c11", f"-I{folder / 'src'}", "-c", source, "-o", tmp_path / "main.o")
        assert ("the arena is too small" in done.stderr, done.returncode != 0) == (refused, refused), done.stderr


@pytest.fixture(scope="module")
def macros(folder, tmp_path_factory) -> ctypes.CDLL:
    """The header's macros as functions."""
    path = tmp_path_factory.mktemp("macros") / "macros.c"
    for name in ("entropi.h", "entropi_image.h"):
        shutil.copy(folder / "src" / name, path.parent)
    path.write_text(
        '#include "entropi_image.h"\n'
        "unsigned arena(unsigned, unsigned, unsigned, unsigned);\ndouble value(int);\n"
        "unsigned arena(unsigned c, unsigned b, unsigned p, unsigned r)\n"
        "{ return (unsigned)ENTROPI_IMAGE_ARENA_BYTES(c, b, p, r); }\n"
        "double value(int which)\n{\n"
        "    const double values[] = {ENTROPI_IMAGE_BYTES, ENTROPI_IMAGE_FEATURES, ENTROPI_IMAGE_INPUT_BYTES,\n"
        "                             ENTROPI_IMAGE_CHANNELS, ENTROPI_IMAGE_HEIGHT, ENTROPI_IMAGE_WIDTH,\n"
        "                             ENTROPI_IMAGE_INPUT_SCALE, ENTROPI_IMAGE_INPUT_ZERO_POINT,\n"
        "                             ENTROPI_IMAGE_ENCODER_BYTES};\n"
        "    return values[which];\n}\n"
    )
    library = ctypes.CDLL(str(build_shared("macros", (path,))))
    library.value.restype = ctypes.c_double
    library.arena.restype = ctypes.c_uint
    return library


def test_the_headers_macros_are_the_images(image, macros):
    info = describe(image)
    assert [macros.value(n) for n in range(9)] == [
        len(image), info.features, info.channels * info.height * info.width, info.channels, info.height, info.width,
        info.input_scale, info.input_zero_point, measure(image, HEAD).encoder,
    ]  # fmt: skip


@given(st.integers(2, 3000), st.integers(1, 300), st.sampled_from([2, 4, 8, 12]), st.integers(0, 500))
@settings(deadline=None)
def test_the_arena_macro_is_what_the_runtime_measures(image, macros, classes, batch, bytes_per_parameter, replay):
    need = measure(image, HeadConfig(classes, batch, bytes_per_parameter, replay=replay))
    assert macros.arena(classes, batch, bytes_per_parameter, replay) == need.total


def test_the_c_is_the_runtimes_with_the_kernels_of_the_image(folder, image):
    originals = [*INCLUDE.iterdir(), *RUNTIME_SOURCES[0].parent.iterdir()]
    names = {path.name for path in originals} | {"entropi_image.c", "entropi_image.h", "LICENSE"}
    assert {path.name for path in (folder / "src").iterdir()} == names
    for path in originals:
        copied = (folder / "src" / path.name).read_text()
        if path == KERNELS_SOURCE:
            assert copied == kernels_source(image)
        else:
            assert copied == path.read_text()


def test_the_licence_is_the_projects(folder):
    text = (folder / "src" / "LICENSE").read_text()
    assert text == (Path(__file__).resolve().parents[2] / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0" in text
    assert json.loads((folder / "library.json").read_text())["license"] == "Apache-2.0"
    assert "license=Apache-2.0" in (folder / "library.properties").read_text().splitlines()


def test_the_platformio_manifest_names_what_there_is(folder):
    manifest = json.loads((folder / "library.json").read_text())
    assert re.fullmatch(r"[a-z0-9-]{1,100}", manifest["name"]) and 0 < len(manifest["description"]) <= 1000
    assert manifest["version"] == version("entropi") and re.fullmatch(r"\d+\.\d+\.\d+", manifest["version"])
    assert manifest["license"] == "Apache-2.0" and "-ffp-contract=off" in manifest["build"]["flags"]
    assert manifest["headers"] and all((folder / "src" / name).is_file() for name in manifest["headers"])


def test_the_arduino_manifest_has_every_field_of_the_specification(folder):
    lines = (folder / "library.properties").read_text().splitlines()
    properties = dict(line.split("=", 1) for line in lines)
    required = {"name", "version", "author", "maintainer", "sentence", "paragraph", "category", "url", "architectures"}
    assert set(properties) == required | {"includes", "license"} and len(properties) == len(lines)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 _.-]{0,62}", properties["name"])
    assert properties["version"] == version("entropi") and properties["category"] == "Data Processing"
    assert all((folder / "src" / name).is_file() for name in properties["includes"].split(","))


def test_the_zephyr_module_names_the_cmake_file(folder):
    module = yaml.safe_load((folder / "zephyr" / "module.yml").read_text())
    assert module == {"name": "entropi", "build": {"cmake": "."}}
    assert (folder / module["build"]["cmake"] / "CMakeLists.txt").is_file()
