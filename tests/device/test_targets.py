"""The runtime compiled for machines that no test runs it on."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from entropi.device.toolchain import INCLUDE, NUMERICS, RUNTIME_SOURCES, WARNINGS, ZIG, ToolchainError


def compile_all(folder, *target: str) -> None:
    def compile_one(source) -> None:
        ZIG.run(*target, "-O2", *WARNINGS, *NUMERICS, f"-I{INCLUDE}", "-c", source, "-o", folder / f"{source.stem}.o")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, RUNTIME_SOURCES))


@pytest.mark.parametrize(
    "target",
    [
        ("--target=arm-linux-musleabihf",),  # not in Thumb state
        ("--target=thumb-freestanding-eabihf", "-mcpu=cortex_m4+vfp4d16sp", "-fPIC"),
        ("--target=x86_64-linux-musl", "-mcpu=baseline"),
        ("--target=aarch64-linux-musl", "-mcpu=baseline"),
        ("--target=aarch64_be-linux-musl", "-mcpu=baseline"),
        ("--target=riscv32-freestanding", "-mcpu=generic_rv32+m+a+c"),
    ],
    ids=["ARM state", "Thumb, position-independent", "x86-64", "AArch64", "AArch64, big-endian", "RISC-V"],
)
def test_it_compiles(target, tmp_path):
    compile_all(tmp_path, *target)


def test_float_arithmetic_in_another_precision_is_refused(tmp_path):
    with pytest.raises(ToolchainError, match="on x86 compile with -msse2 -mfpmath=sse"):
        compile_all(tmp_path, "--target=x86-linux-musl", "-mcpu=i586")
