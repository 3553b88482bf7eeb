import pytest

from entropi.firmware_sim.boards import BoardError, board
from entropi.firmware_sim.emulator import Emulator, FaultError
from entropi.firmware_sim.qemu import check_emulated
from entropi.firmware_sim.session import Simulator

RECURSION = """
__attribute__((optnone, noinline)) static uint32_t deeper(uint32_t n)
{
    volatile uint32_t pad[50];
    pad[0] = n;
    return n ? deeper(n - 1) + pad[0] : 0;
}
"""


@pytest.mark.parametrize(
    ("source", "kind", "address"),
    [
        ("(void)*(volatile int *)(uintptr_t)0x10;", "read outside flash and RAM", 0x10),
        ("*(volatile int *)(uintptr_t)0x10 = 1;", "write outside flash and RAM", 0x10),
        ("*(volatile int *)(uintptr_t)RAM_END = 1;", "write outside flash and RAM", "RAM_END"),
        ("*(volatile int *)(uintptr_t)CODE = 1;", "write to flash", "CODE"),
        ("((void (*)(void))(uintptr_t)(DATA | 1))();", "execution from RAM", "DATA"),
        ("((void (*)(void))(uintptr_t)0x00000001)();", "execution outside flash", 0),
        ('__asm__ volatile("udf #0");', "undefined instruction", None),
        ('__asm__ volatile("bkpt #1");', "breakpoint", None),
        ('__asm__ volatile("svc #0");', "supervisor call, which nothing handles", None),
        ("((void (*)(void))(uintptr_t)CODE)();", "branch to an even address, as if to Arm code", None),
        ('__asm__ volatile("movs r0, #0x13\\n\\tbkpt #0xab" ::: "r0");', "semihosting operation 0x13", None),
    ],
)
def test_fault(run_c, either, source, kind, address):
    on = either
    ram, flash = on.ram, on.flash
    places = {"RAM_END": ram.origin + ram.length, "DATA": ram.origin + 0x100, "CODE": flash.origin + 0x40}
    defines = "".join(f"#define {name} {place:#x}\n" for name, place in places.items())
    emulator, _ = run_c(f"{defines}int main(void) {{\n{source}\nreturn 0; }}\n", on)
    with pytest.raises(FaultError) as error:
        emulator.run()
    fault = error.value
    assert (fault.kind, fault.address) == (kind, places.get(address, address))
    assert str(fault).startswith(f"{on.name}: {kind}")
    assert "\n" not in str(fault)
    assert "main+" in str(fault) or "called from main+" in str(fault)
    assert "(snippet.c:" in str(fault)


UDIV, VADD_F32, SADD8 = "0xfbb1f0f1", "0xee300a20", "0xfa81f001"


@pytest.mark.parametrize(
    ("core", "instruction", "kind"),
    [
        ("cortex-m0plus", UDIV, "undefined instruction"),
        ("cortex-m0plus", SADD8, "undefined instruction"),
        ("cortex-m0plus", VADD_F32, "undefined instruction"),
        ("cortex-m3", UDIV, None),
        ("cortex-m3", SADD8, "undefined instruction"),
        ("cortex-m3", VADD_F32, "FPU instruction without an FPU"),
        *((core, word, None) for core in ("cortex-m4f", "cortex-m7", "cortex-m33") for word in (UDIV, SADD8, VADD_F32)),
    ],
)
def test_each_core_has_its_own_instructions(run_c, board_of, core, instruction, kind):
    source = f'__asm__ volatile("movs r1, #1\\n\\t.inst.w {instruction}" ::: "r0", "r1", "memory");'
    emulator, _ = run_c(f"int main(void) {{ {source} return 0; }}", board_of[core])
    if kind is None:
        emulator.run()
        assert emulator.exit_status == 0
    else:
        with pytest.raises(FaultError, match=rf"{kind}, pc .* in main\+.*snippet.c:4\)"):
            emulator.run()


@pytest.mark.parametrize("load", ["ldr r0, [%0]", "strh r0, [%0]"])
def test_unaligned_access_faults_where_the_core_has_none(run_c, either, load):
    emulator, _ = run_c(
        f"""int main(void) {{
            uint32_t words[2] = {{0, 0}};
            __asm__ volatile("{load}" :: "r"((uintptr_t)words + 1) : "r0", "memory");
            return 0; }}""",
        either,
    )
    if either.core == "cortex-m0plus":
        with pytest.raises(FaultError, match=r"raspberry-pi-pico: unaligned access, pc .* in main\+.*snippet.c:6\)"):
            emulator.run()
    else:
        emulator.run()
        assert emulator.exit_status == 0


def test_fault_names_the_source_line(run_c, either):
    source = 'int main(void)\n{\n  port_open();\n  __asm__ volatile("udf #0");\n  return 0;\n}\n'
    emulator, _ = run_c(source, either)
    with pytest.raises(FaultError, match=r"pc 0x[01][08][0-9a-f]{6} in main\+\d+ \(snippet.c:7\)"):
        emulator.run()


def test_stack_overflow_is_caught_below_ram(run_c, either):
    emulator, _ = run_c(RECURSION + "int main(void) { return (int)deeper(1000000); }", either)
    with pytest.raises(FaultError, match=r"stack overflow: write below RAM at 0x.* in deeper\+.*snippet.c:") as error:
        emulator.run()
    assert either.ram.origin - 0x1000 <= error.value.address < either.ram.origin


def test_watchdog(run_c, either):
    emulator, _ = run_c('int main(void) { for (;;) __asm__ volatile("nop"); }', either, instruction_limit=1_000_000)
    with pytest.raises(FaultError, match=r"no end after 1000000 instructions, pc .* in main\+.*snippet.c:4\)") as error:
        emulator.run()
    with pytest.raises(FaultError) as again:
        emulator.receive()
    assert again.value is error.value


def test_firmware_that_ends(run_c):
    emulator, _ = run_c("int main(void) { return 1; }")
    with pytest.raises(FaultError, match="the firmware has ended with status 1"):
        emulator.receive()
    assert emulator.exit_status == 1


def test_core_that_unicorn_has_not():
    said = "corstone-300: Unicorn has no cortex-m55; choose a board with cortex-m0plus"
    with pytest.raises(BoardError, match=said):
        Emulator(board("corstone-300"), b"")


def test_core_that_no_emulator_has(monkeypatch, bundle):
    monkeypatch.setenv("PATH", "")
    said = "corstone-300: cortex-m55 is not emulated here; .*, or install qemu-system-arm"
    with pytest.raises(BoardError, match=said):
        Simulator(bundle, "corstone-300")
    check_emulated(board("bluepill"))


def count(run_c, assembly: str, on) -> int:
    clobbered = '"r0", "r1", "r2", "lr", "cc"'
    emulator, _ = run_c(f'int main(void) {{ __asm__ volatile("nop\\n\\t{assembly}" ::: {clobbered}); return 0; }}', on)
    emulator.run()
    assert emulator.exit_status == 0
    return emulator.instructions


ARMV6_M = (
    ("movs r0, #10", 1),
    ("1: subs r0, #1", 10),
    ("bne 1b", 10),
    ("bl 2f", 1),  # 32 bits
    ("nop", 0),
    ("2: dmb", 1),  # 32 bits
    ("mrs r1, control", 1),  # 32 bits
)
THUMB_2 = (
    ("movw r1, #0x1234", 1),  # 32 bits
    ("cmp r1, #0", 1),
    ("ite eq", 1),
    ("moveq r2, #1", 1),  # its condition fails; it is executed as a no-operation
    ("movne.w r2, #2", 1),
    ("nop.w", 1),
    ("b.w 3f", 1),
    ("nop", 0),
    ("3: nop", 1),
)


def test_instructions_are_counted_exactly(run_c, every_core):
    assembly = ARMV6_M if every_core.core == "cortex-m0plus" else ARMV6_M + THUMB_2
    expected = sum(times for _, times in assembly)
    lines = "\\n\\t".join(line for line, _ in assembly)
    assert count(run_c, lines, every_core) - count(run_c, "", every_core) == expected in (24, 32)


def test_two_runs_take_the_same_instructions(run_c):
    source = RECURSION + "int main(void) { return (int)deeper(100) < 0; }"
    first, second = run_c(source)[0], run_c(source)[0]
    first.run()
    second.run()
    assert first.instructions == second.instructions > 1000


def test_clock_shows_the_instructions_executed(run_c):
    emulator, _ = run_c(
        """int main(void) {
            port_open();
            uint64_t ticks = port_ticks();
            port_write((const uint8_t *)&ticks, 8);
            uint8_t byte;
            port_read(&byte, 1);
            ticks = port_ticks();
            port_write((const uint8_t *)&ticks, 8);
            return 0; }"""
    )
    first = int.from_bytes(emulator.receive(), "little")
    at_wait = emulator.instructions
    assert emulator.receive() == b""
    assert emulator.instructions == at_wait
    emulator.send(b"x")
    second = int.from_bytes(emulator.receive(), "little")
    assert 1000 < first < at_wait < second < emulator.instructions < second + 100


def test_stack_high_water_is_exact(run_c, nucleo):
    """Writes one word 1000 bytes below the stack pointer and tells where that was."""
    emulator, firmware = run_c(
        """#include "startup.h"
        int main(void) {
            port_open();
            uint32_t lowest;
            __asm__ volatile("sub %0, sp, #1000\\n\\tstr %0, [%0]" : "=r"(lowest) :: "memory");
            const uint32_t told[3] = {lowest, startup_stack_used(), startup_stack_bytes()};
            port_write((const uint8_t *)told, sizeof told);
            return 0; }"""
    )
    output = emulator.receive()
    lowest, used, size = (int.from_bytes(output[i : i + 4], "little") for i in (0, 4, 8))
    assert used == firmware.symbols["stack_top"] - lowest
    assert size == firmware.ram["stack"]


def test_deeper_recursion_uses_more_stack(run_c):
    def used(depth: int) -> int:
        emulator, _ = run_c(
            '#include "startup.h"\n'
            + RECURSION
            + f"""int main(void) {{
                port_open();
                volatile uint32_t sum = deeper({depth});
                const uint32_t used = startup_stack_used() + 0 * sum;
                port_write((const uint8_t *)&used, 4);
                return 0; }}"""
        )
        return int.from_bytes(emulator.receive(), "little")

    ten, eleven, thirty = used(10), used(11), used(30)
    assert eleven - ten >= 200
    assert thirty - ten == 20 * (eleven - ten)


def test_data_and_bss_are_set_up_and_the_fpu_works(run_c):
    emulator, firmware = run_c(
        """static volatile float factor = 1.5f, zero;
        int main(void) {
            port_open();
            float product = factor * 3.0f + zero;
            port_write((const uint8_t *)&product, 4);
            return 0; }"""
    )
    assert firmware.ram["data"] == firmware.flash["data"] == 8
    assert emulator.receive() == bytes.fromhex("00009040")
