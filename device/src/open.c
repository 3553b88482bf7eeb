/* The arena: how many bytes each part takes, and where it starts. */
#include "internal.h"

static uint32_t align(uint64_t bytes)
{
    return (uint32_t)((bytes + ENTROPI_ARENA_ALIGNMENT - 1) & ~(uint64_t)(ENTROPI_ARENA_ALIGNMENT - 1));
}

static int head_fits(const entropi_head_config *head)
{
    const int bytes = head->bytes_per_parameter;
    return head->classes >= 2 && head->new_classes < head->classes && head->batch >= 1 &&
           (bytes == 2 || bytes == 4 || bytes == 8 || bytes == 12) && head->learning_rate > 0.0f &&
           head->learning_rate < 1e9f && head->momentum >= 0.0f && head->momentum < 1.0f &&
           head->weight_decay >= 0.0f && head->learning_rate * head->weight_decay < 0.5f &&
           head->learning_rate_decay >= 0.0f && head->learning_rate_decay < 1e9f &&
           (bytes > 4 || head->momentum == 0.0f);
}

/* For an image already validated. */
static entropi_status measure(const uint8_t *image, const entropi_head_config *head, entropi_need *need)
{
    const image_header h = read_header(image);
    const uint64_t classes = head->classes, weights = classes * h.features;
    const uint64_t sample = h.features + 4 * classes, replay = replay_bytes(head, h.features);
    if (weights > INT32_MAX / 16 || sample * head->batch > INT32_MAX / 4 || replay > INT32_MAX / 4)
        return ENTROPI_E_ARGUMENT;
    const int bytes = head->bytes_per_parameter;
    const uint64_t known = (classes + KNOWN_BITS - 1) / KNOWN_BITS;
    *need = (entropi_need){
        .weights = align(HEAD_STATE_BYTES + 4 * (classes + known) + (bytes == 2 ? 2 : 4) * weights),
        .momentum = bytes >= 8 ? align(4 * (1 + classes + weights)) : 0,
        .gradient = bytes == 12 ? align(4 * (classes + weights)) : 0,
        .batch = stores_batch(head) ? align(sample * head->batch) : 0,
        .replay = align(replay),
        .encoder = align(h.activation_bytes) + align(4u * (uint64_t)h.row_entries),
        .learning = align(4u * (2u + HEAD_BLOCK) * classes),
    };
    const uint64_t total = (uint64_t)need->weights + need->momentum + need->gradient + need->batch + need->replay +
                           (need->encoder > need->learning ? need->encoder : need->learning);
    if (total > INT32_MAX)
        return ENTROPI_E_ARGUMENT;
    need->total = (uint32_t)total;
    return ENTROPI_OK;
}

entropi_status entropi_measure(const void *image, size_t image_length, const entropi_head_config *head,
                               entropi_need *need)
{
    entropi_info info;
    if (!head || !need || !head_fits(head))
        return ENTROPI_E_ARGUMENT;
    const entropi_status status = entropi_describe(image, image_length, &info);
    return status ? status : measure(image, head, need);
}

entropi_status entropi_open(entropi *self, const void *image, size_t image_length, const entropi_head_config *head,
                            void *arena, size_t arena_length, entropi_need *need)
{
    entropi_need n;
    if (!self || !arena)
        return ENTROPI_E_ARGUMENT;
    const entropi_status status = entropi_measure(image, image_length, head, &n);
    if (status)
        return status;
    n.given = arena_length < UINT32_MAX ? (uint32_t)arena_length : UINT32_MAX;
    n.missing = n.total > n.given ? n.total - n.given : 0;
    if (need)
        *need = n;
    if (n.missing || (uintptr_t)arena % ENTROPI_ARENA_ALIGNMENT)
        return ENTROPI_E_ARENA;

    *self = (entropi){
        .image = image,
        .arena = arena,
        .head = *head,
        .image_length = (uint32_t)image_length,
        .features = read_header(image).features,
    };
    self->momentum_at = n.weights;
    self->gradient_at = self->momentum_at + n.momentum;
    self->batch_at = self->gradient_at + n.gradient;
    self->replay_at = self->batch_at + n.batch;
    self->working_at = self->replay_at + n.replay;
    for (uint32_t i = 0; i < self->working_at; i++)
        self->arena[i] = 0;
    const linear_head located = locate_head(self);
    start_head(&located);
    return ENTROPI_OK;
}
