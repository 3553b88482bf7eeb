/* Two slots at the end of flash, written through the emulator's flash controller; firmware_sim/flash.py describes its
 * registers. A board's own flash needs these three functions and no others. */
#include "flash.h"

enum { ERASE = 1, PROGRAM = 2, DONE = 0 };

typedef struct {
    uint32_t page_bytes, unit_bytes, address, command, status, unused[3];
    uint32_t data[8];
} controller;

#define CONTROLLER ((volatile controller *)0x5FFFF000u)

/* Set by link.ld; the addresses are the values. */
extern const uint8_t slots_start[], slots_end[];

static uint32_t slot_bytes(void)
{
    return (uint32_t)((uintptr_t)slots_end - (uintptr_t)slots_start) / 2;
}

static uint32_t address(uint32_t slot, uint32_t offset)
{
    return (uint32_t)(uintptr_t)slots_start + slot * slot_bytes() + offset;
}

static int carry_out(uint32_t command, uint32_t at)
{
    CONTROLLER->address = at;
    CONTROLLER->command = command;
    return CONTROLLER->status != DONE;
}

static int erase(void *context, uint32_t slot)
{
    (void)context;
    for (uint32_t at = 0; at < slot_bytes(); at += CONTROLLER->page_bytes)
        if (carry_out(ERASE, address(slot, at)))
            return -1;
    return 0;
}

static int write(void *context, uint32_t slot, uint32_t offset, const void *data, uint32_t length)
{
    const uint8_t *bytes = data;
    const uint32_t unit = CONTROLLER->unit_bytes;
    (void)context;
    for (uint32_t at = 0; at < length; at += unit) {
        for (uint32_t i = 0; i < unit; i += 4) {
            uint32_t word = 0;
            for (uint32_t byte = 0; byte < 4 && i + byte < unit; byte++)
                word |= (uint32_t)bytes[at + i + byte] << (8 * byte);
            CONTROLLER->data[i / 4] = word;
        }
        if (carry_out(PROGRAM, address(slot, offset + at)))
            return -1;
    }
    return 0;
}

static int read(void *context, uint32_t slot, uint32_t offset, void *data, uint32_t length)
{
    const volatile uint8_t *from = (const volatile uint8_t *)(uintptr_t)address(slot, offset);
    uint8_t *to = data;
    (void)context;
    for (uint32_t i = 0; i < length; i++)
        to[i] = from[i];
    return 0;
}

entropi_store flash_store(void)
{
    return (entropi_store){NULL, slot_bytes(), erase, write, read};
}
