/* The arena: how many bytes each part takes, and where it starts. */
#include "head.h"

static int head_fits(const entropi_head_config *head)
{
    const int bytes = head->bytes_per_parameter;
    return head->classes >= 2 && head->new_classes < head->classes && head->batch >= 1 &&
           (bytes == 2 || bytes == 4 || bytes == 8 || bytes == 12) && head->learning_rate >= 1e-9f &&
           head->learning_rate < 1e9f && head->momentum >= 0.0f && head->momentum < 1.0f &&
           head->weight_decay >= 0.0f && head->learning_rate * head->weight_decay < 0.5f &&
           head->learning_rate_decay >= 0.0f && head->learning_rate_decay < 1e9f &&
           (bytes > 4 || head->momentum == 0.0f);
}

/* For an image already validated. */
NOT_INLINED entropi_status measure(const uint8_t *image, const entropi_head_config *head, entropi_need *need)
{
    const image_header h = read_header(image);
    const uint32_t classes = head->classes, bytes = head->bytes_per_parameter;
    const uint64_t encoder = ENTROPI_ALIGNED((uint64_t)h.activation_bytes);
    const uint64_t total = ENTROPI_ARENA_BYTES(h.features, encoder, classes, head->batch, bytes, head->replay);
    if (total > INT32_MAX)
        return ENTROPI_E_ARGUMENT;
    *need = (entropi_need){
        .weights = (uint32_t)ENTROPI_WEIGHTS_BYTES(h.features, classes, bytes),
        .momentum = (uint32_t)ENTROPI_MOMENTUM_BYTES(h.features, classes, bytes),
        .gradient = (uint32_t)ENTROPI_GRADIENT_BYTES(h.features, classes, bytes),
        .batch = (uint32_t)ENTROPI_BATCH_BYTES(h.features, classes, head->batch, bytes),
        .replay = (uint32_t)ENTROPI_REPLAY_BYTES(h.features, classes, head->replay),
        .encoder = (uint32_t)encoder,
        .learning = (uint32_t)ENTROPI_LEARNING_BYTES(h.features, classes),
        .total = (uint32_t)total,
    };
    return ENTROPI_OK;
}

entropi_status entropi_measure(const void *image, size_t image_length, const entropi_head_config *head,
                               entropi_need *need)
{
    entropi_info info;
    if (!head || !need || !head_fits(head))
        return ENTROPI_E_ARGUMENT;
    const entropi_status status = entropi_describe(image, image_length, &info);
    if (status)
        return status;
    return memory_modes[MODE_OF(head->bytes_per_parameter)] ? measure(image, head, need) : ENTROPI_E_KERNEL;
}

void start_again(entropi *self)
{
    for (uint32_t i = 0; i < self->working_at; i++)
        self->arena[i] = 0;
    self->pending = 0;
    const linear_head head = locate_head(self);
    start_head(&head);
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
    start_again(self);
    return ENTROPI_OK;
}
