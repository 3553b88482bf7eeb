/* fuzz_store IMAGE ROUNDS: save, learn and restore in slots of random sizes and random damage, mended or not.
 * Prints how many restores found a head and how many did not. */
#include "entropi.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t state = 1;

static uint32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

static uint32_t load(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void damage(uint8_t *slot, uint32_t bytes)
{
    for (uint32_t changes = next() % 4; changes > 0; changes--)
        slot[next() % (next() & 1 ? 32 : bytes)] = (uint8_t)next();
    const uint32_t payload = load(slot + 16), crc_at = 32 + (payload + 31) / 32 * 32;
    if (next() & 1 && payload < bytes && crc_at + 4 <= bytes) {
        const uint32_t crc = entropi_crc32(0, slot, 32 + payload);
        for (int i = 0; i < 4; i++)
            slot[crc_at + (uint32_t)i] = (uint8_t)(crc >> 8 * i);
    }
}

int main(int argc, char **argv)
{
    (void)argc;
    FILE *file = fopen(argv[1], "rb");
    uint8_t image[1 << 12];
    const size_t length = fread(image, 1, sizeof image, file);
    fclose(file);
    int restored = 0, refused = 0;
    for (long round = 0, rounds = atol(argv[2]); round < rounds; round++) {
        const entropi_head_config head = {.classes = (uint16_t)(2 + next() % 6),
                                          .batch = 2,
                                          .bytes_per_parameter = next() & 1 ? 8 : 12,
                                          .learning_rate = 0.1f,
                                          .momentum = 0.9f};
        entropi_need need;
        entropi_info info;
        entropi self;
        if (entropi_measure(image, length, &head, &need) || entropi_describe(image, length, &info))
            return 1;
        void *arena = malloc(need.total);
        const uint32_t record = 64 + (need.weights + 31) / 32 * 32;
        const uint32_t slot_bytes = next() & 1 ? record : 64 + next() % 300;
        entropi_ram ram = {malloc(2 * slot_bytes), slot_bytes};
        memset(ram.memory, 0xFF, 2 * slot_bytes);
        const entropi_store store = entropi_ram_store(&ram);
        if (entropi_open(&self, image, length, &head, arena, need.total, NULL))
            return 1;
        int8_t features[64] = {1, 2, 3};
        float loss;
        for (int i = 0; i < 4; i++) {
            entropi_learn(&self, features, info.features, (uint16_t)(i % 2), &loss);
            const entropi_status status = entropi_save(&self, &store);
            if ((status == ENTROPI_OK) != (slot_bytes >= record))
                return 2;
        }
        damage(ram.memory, slot_bytes), damage(ram.memory + slot_bytes, slot_bytes);
        if (entropi_restore(&self, &store))
            refused++;
        else
            restored++;
        entropi_save(&self, &store);
        free(arena), free(ram.memory);
    }
    printf("%d %d\n", restored, refused);
    return 0;
}
