/* fuzz IMAGE ROUNDS: run the image; then damage it, mend its CRC, and run whatever the runtime accepts, so many times.
 * Prints how many ran. */
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

/* Three images of zeros at once; the bytes of their features are those of one image. Where damage has made tensors
 * overlap, they need not be. */
static void run_batch(const entropi *self, size_t input_length, const int8_t *features, int is_whole)
{
    const size_t bytes = entropi_batch_bytes(self);
    void *arena = malloc(bytes);
    int8_t *inputs = calloc(3, input_length), *found = malloc(3 * self->features);
    if (entropi_encode_batch(self, inputs, 3, found, arena, bytes) != ENTROPI_OK)
        abort();
    for (size_t i = 0; is_whole && i < 3 * self->features; i++)
        if (found[i] != features[i % self->features])
            abort();
    free(arena), free(inputs), free(found);
}

static int run(const uint8_t *image, size_t length, long round)
{
    const entropi_head_config head = {
        .classes = 3, .batch = 2, .bytes_per_parameter = 8, .replay = 2, .learning_rate = 0.1f, .momentum = 0.9f};
    entropi_need need;
    entropi_info info;
    entropi self;
    if (entropi_measure(image, length, &head, &need) || entropi_describe(image, length, &info) ||
        need.total > 1u << 24)
        return 0;
    void *arena = malloc(need.total);
    const size_t input_length = (size_t)info.channels * info.height * info.width;
    int8_t *input = calloc(input_length, 1), *features = malloc(info.features);
    int ran = entropi_open(&self, image, length, &head, arena, need.total, NULL) == ENTROPI_OK &&
              entropi_encode(&self, input, input_length, features, info.features) == ENTROPI_OK;
    if (ran && round % 8 == 0)
        run_batch(&self, input_length, features, round == 0);
    float loss;
    uint16_t label;
    for (int i = 0; ran && i < 5; i++) {
        entropi_learn(&self, features, info.features, (uint16_t)(i % 3), &loss);
        entropi_predict(&self, features, info.features, &label, &loss);
    }
    free(arena), free(input), free(features);
    return ran;
}

int main(int argc, char **argv)
{
    (void)argc;
    FILE *file = fopen(argv[1], "rb");
    uint8_t original[1 << 16];
    const size_t length = fread(original, 1, sizeof original, file);
    fclose(file);
    int ran = 0;
    for (long round = 0, rounds = atol(argv[2]); round <= rounds; round++) {
        uint8_t *image = malloc(length);
        memcpy(image, original, length);
        for (uint32_t changes = round ? 1 + next() % 3 : 0; changes > 0; changes--)
            image[next() % (length - 4)] = next() & 1 ? (uint8_t)next() : (uint8_t)(1u << next() % 8);
        const uint32_t crc = entropi_crc32(0, image, length - 4);
        for (int i = 0; i < 4; i++)
            image[length - 4 + i] = (uint8_t)(crc >> 8 * i);
        ran += run(image, length, round);
        free(image);
    }
    printf("%d\n", ran);
    return 0;
}
