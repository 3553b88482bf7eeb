/* Slots in memory that keeps its bytes without the core: FRAM, RAM on a battery, or a test's. */
#include "entropi.h"

static uint8_t *at(void *context, uint32_t slot, uint32_t offset)
{
    const entropi_ram *ram = context;
    return ram->memory + (size_t)slot * ram->slot_bytes + offset;
}

static int erase(void *context, uint32_t slot)
{
    const entropi_ram *ram = context;
    for (uint32_t i = 0; i < ram->slot_bytes; i++)
        at(context, slot, 0)[i] = 0xFF;
    return 0;
}

static int write(void *context, uint32_t slot, uint32_t offset, const void *data, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        at(context, slot, offset)[i] = ((const uint8_t *)data)[i];
    return 0;
}

static int read(void *context, uint32_t slot, uint32_t offset, void *data, uint32_t length)
{
    for (uint32_t i = 0; i < length; i++)
        ((uint8_t *)data)[i] = at(context, slot, offset)[i];
    return 0;
}

entropi_store entropi_ram_store(entropi_ram *ram)
{
    return (entropi_store){ram, ram->slot_bytes, erase, write, read};
}
