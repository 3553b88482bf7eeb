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

void port_open(void)
{
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

uint64_t port_ticks(void)
{
    uint32_t words[2] = {0, 0};
    call(SYS_ELAPSED, (uintptr_t)words);
    return (uint64_t)words[1] << 32 | words[0];
}

void port_exit(int status)
{
    for (;;)
        call(SYS_EXIT, status ? STOPPED_RUN_TIME_ERROR : STOPPED_APPLICATION_EXIT);
}
