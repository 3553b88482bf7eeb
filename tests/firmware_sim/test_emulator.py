from dataclasses import replace

import pytest

from entropi.firmware_sim.boards import BoardError
from entropi.firmware_sim.emulator import Emulator, FaultError

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
        ("*(volatile int *)(uintptr_t)0x20020000 = 1;", "write outside flash and RAM", 0x20020000),
        ("*(volatile int *)(uintptr_t)0x08000040 = 1;", "write to flash", 0x08000040),
        ("((void (*)(void))(uintptr_t)0x20000101)();", "execution from RAM", 0x20000100),
        ("((void (*)(void))(uintptr_t)0x00000001)();", "execution outside flash", 0),
        ('__asm__ volatile("udf #0");', "undefined instruction", None),
        ('__asm__ volatile("bkpt #1");', "breakpoint", None),
        ('__asm__ volatile("svc #0");', "supervisor call, which nothing handles", None),
        ("((void (*)(void))(uintptr_t)0x08000100)();", "branch to an even address, as if to Arm code", None),
        ('__asm__ volatile("movs r0, #0x13\\n\\tbkpt #0xab" ::: "r0");', "semihosting operation 0x13", None),
    ],
)
def test_fault(run_c, source, kind, address):
    emulator, firmware = run_c(f"int main(void) {{\n{source}\nreturn 0; }}\n")
    with pytest.raises(FaultError) as error:
        emulator.run()
    fault = error.value
    assert (fault.kind, fault.address) == (kind, address)
    assert str(fault).startswith(f"nucleo-f446re: {kind}")
    assert "\n" not in str(fault)
    assert "main+" in str(fault) or "called from main+" in str(fault)
    assert "(snippet.c:" in str(fault)


def test_fault_names_the_source_line(run_c):
    emulator, _ = run_c('int main(void)\n{\n  port_open();\n  __asm__ volatile("udf #0");\n  return 0;\n}\n')
    with pytest.raises(FaultError, match=r"pc 0x08[0-9a-f]{6} in main\+\d+ \(snippet.c:7\)"):
        emulator.run()


def test_stack_overflow_is_caught_below_ram(run_c, nucleo):
    emulator, _ = run_c(RECURSION + "int main(void) { return (int)deeper(1000000); }")
    with pytest.raises(FaultError, match=r"stack overflow: write below RAM at 0x1fff.* in deeper\+") as error:
        emulator.run()
    assert nucleo.ram.origin - 0x1000 <= error.value.address < nucleo.ram.origin


def test_watchdog(run_c):
    emulator, _ = run_c('int main(void) { for (;;) __asm__ volatile("nop"); }', instruction_limit=1_000_000)
    with pytest.raises(FaultError, match=r"no end after 1000000 instructions, pc .* in main\+") as error:
        emulator.run()
    with pytest.raises(FaultError) as again:
        emulator.receive()
    assert again.value is error.value


def test_firmware_that_ends(run_c):
    emulator, _ = run_c("int main(void) { return 1; }")
    with pytest.raises(FaultError, match="the firmware has ended with status 1"):
        emulator.receive()
    assert emulator.exit_status == 1


def test_core_that_is_not_emulated(nucleo):
    with pytest.raises(BoardError, match="nucleo-f446re: cortex-m55 is not emulated; choose a board with cortex-m4f"):
        Emulator(replace(nucleo, core="cortex-m55"), b"")


def count(run_c, assembly: str) -> int:
    emulator, _ = run_c(
        f'int main(void) {{ __asm__ volatile("nop\\n\\t{assembly}" ::: "r0", "r1", "r2", "cc"); return 0; }}'
    )
    emulator.run()
    assert emulator.exit_status == 0
    return emulator.instructions


def test_instructions_are_counted_exactly(run_c):
    assembly = [
        ("movs r0, #10", 1),
        ("1: subs r0, #1", 10),
        ("bne 1b", 10),
        ("movw r1, #0x1234", 1),  # 32 bits
        ("cmp r1, #0", 1),
        ("ite eq", 1),
        ("moveq r2, #1", 1),  # its condition fails; it is executed as a no-operation
        ("movne.w r2, #2", 1),
        ("nop.w", 1),
        ("b.w 2f", 1),
        ("nop", 0),
        ("2: nop", 1),
    ]
    expected = sum(times for _, times in assembly)
    lines = "\\n\\t".join(line for line, _ in assembly)
    assert count(run_c, lines) - count(run_c, "") == expected == 29


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
