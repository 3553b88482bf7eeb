/* The byte stream over Arm semihosting (Arm's "Semihosting for AArch32 and AArch64"): ":tt" in and out. */
#include "port.h"

enum {
    SYS_OPEN = 0x01,
    SYS_WRITE = 0x05,
    SYS_READ = 0x06,
    SYS_EXIT = 0x18,
    SYS_ELAPSED = 0x30,
    MODE_READ_BINARY = 1,
    MODE_WRITE_BINARY = 5,
    STOPPED_RUN_TIME_ERROR = 0x20023,
    STOPPED_APPLICATION_EXIT = 0x20026
};

static uint32_t input, output;

static uint32_t call(uint32_t operation, uintptr_t argument)
{
    register uint32_t r0 __asm__("r0") = operation;
    register uintptr_t r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static uint32_t open_console(uint32_t mode)
{
    static const char name[] = ":tt";
    const uint32_t block[3] = {(uint32_t)(uintptr_t)name, mode, sizeof name - 1};
    return call(SYS_OPEN, (uintptr_t)block);
}

#ifdef __ARM_FEATURE_MVE
/* QEMU, which runs an M55 here, answers SYS_ELAPSED with the host's time. Its machine has the system counter of an
 * SSE-300 (Arm 101773), 32 MHz, and qemu.py lets an instruction take 32 ns: 1.024 ticks. */
#define COUNTER_CONTROL ((volatile uint32_t *)0x58100000u)
#define COUNTER ((const volatile uint32_t *)0x58101000u)

static void start_clock(void) { *COUNTER_CONTROL = 1; }

uint64_t port_ticks(void)
{
    uint32_t high, low;
    do {
        high = COUNTER[1];
        low = COUNTER[0];
    } while (high != COUNTER[1]);
    return (((uint64_t)high << 32 | low) * 125 + 127) / 128;
}
#else
static void start_clock(void) {}

uint64_t port_ticks(void)
{
    uint32_t words[2] = {0, 0};
    call(SYS_ELAPSED, (uintptr_t)words);
    return (uint64_t)words[1] << 32 | words[0];
}
#endif

void port_open(void)
{
    start_clock();
    input = open_console(MODE_READ_BINARY);
    output = open_console(MODE_WRITE_BINARY);
}

int port_read(uint8_t *data, uint32_t length)
{
    while (length) {
        const uint32_t block[3] = {input, (uint32_t)(uintptr_t)data, length};
        const uint32_t unread = call(SYS_READ, (uintptr_t)block);
        if (unread >= length)
            return -1;
        data += length - unread;
        length = unread;
    }
    return 0;
}

void port_write(const uint8_t *data, uint32_t length)
{
    const uint32_t block[3] = {output, (uint32_t)(uintptr_t)data, length};
    call(SYS_WRITE, (uintptr_t)block);
}

void port_exit(int status)
{
    for (;;)
        call(SYS_EXIT, status ? STOPPED_RUN_TIME_ERROR : STOPPED_APPLICATION_EXIT);
}
