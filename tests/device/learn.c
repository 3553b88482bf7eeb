/* learn IMAGE BYTES_PER_PARAMETER MOMENTUM BATCH SAMPLES: learn samples that a generator makes, and print the head's
 * bits as one number, its steps' losses included. */
#include "entropi.h"

#include <stdio.h>
#include <stdlib.h>

static uint32_t state = 1;

static uint32_t next(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

int main(int argc, char **argv)
{
    static uint8_t image[1 << 16];
    FILE *file = fopen(argv[1], "rb");
    const size_t length = fread(image, 1, sizeof image, file);
    fclose(file);
    entropi_head_config head = {0};
    head.classes = 7, head.new_classes = 2, head.replay = 9, head.seed = 3, head.steps = 200;
    head.bytes_per_parameter = (uint16_t)atoi(argv[2]);
    head.momentum = (float)atof(argv[3]);
    head.batch = (uint16_t)atoi(argv[4]);
    head.learning_rate = 2.0f, head.weight_decay = 1e-3f, head.learning_rate_decay = 1e-3f;
    entropi_need need;
    entropi_info info;
    entropi self;
    if (argc != 6 || entropi_describe(image, length, &info) || entropi_measure(image, length, &head, &need))
        return 1;
    void *arena = malloc(need.total);
    int8_t *features = malloc(info.features);
    if (entropi_open(&self, image, length, &head, arena, need.total, NULL))
        return 1;
    uint32_t crc = 0;
    for (long n = 0, samples = atol(argv[5]); n < samples; n++) {
        const uint16_t label = (uint16_t)(next() % head.classes);
        for (uint32_t i = 0; i < info.features; i++)
            features[i] = (int8_t)((int)(next() % 160) - 120 + (i % head.classes == label ? 60 : 0));
        float loss;
        if (entropi_learn(&self, features, info.features, label, &loss) || (n % 50 == 49 && entropi_flush(&self)))
            return 1;
        crc = entropi_crc32(crc, &loss, sizeof loss);
    }
    for (size_t i = 0; i < (size_t)head.classes * (info.features + 1); i++) {
        float parameter;
        if (entropi_head(&self, i, 1, &parameter))
            return 1;
        crc = entropi_crc32(crc, &parameter, sizeof parameter);
    }
    printf("%08x\n", (unsigned)crc);
    free(arena), free(features);
    return 0;
}
