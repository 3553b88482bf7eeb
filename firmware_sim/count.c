/* A block hook for Unicorn that counts executed Thumb instructions; emulator.py registers it. Native, because a Python
 * hook is sixty times slower; by block, because a hook an instruction misses those inside IT blocks. */
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT
#endif

typedef struct {
    uint16_t bytes, instructions;
} block;

typedef struct {
    uint64_t instructions, limit; /* emulation stops in the block that passes limit */
    uint64_t start;               /* address of code[0] */
    const uint8_t *code;
    block *memo;                  /* one for each halfword of code */
    int (*stop)(void *engine);    /* uc_emu_stop */
} counter;

EXPORT void count_block(void *engine, uint64_t address, uint32_t bytes, void *user)
{
    counter *c = user;
    const size_t at = (size_t)(address - c->start) / 2;
    block *memo = c->memo + at;
    if (memo->bytes != bytes) {
        uint16_t instructions = 0;
        for (uint32_t i = 0; i < bytes; instructions++) {
            const unsigned top_five_bits = c->code[2 * at + i + 1] >> 3;
            i += top_five_bits >= 0x1D ? 4 : 2;
        }
        *memo = (block){(uint16_t)bytes, instructions};
    }
    c->instructions += memo->instructions;
    if (c->instructions > c->limit)
        c->stop(engine);
}
