/* The linear head: softmax regression on standardised features, trained by SGD. Here are the samples and their errors;
 * weights.c has the weights. */
#include "head.h"

/* What entropi.h's macros count is what is laid out here. */
typedef char macros_count_the_state[sizeof(head_state) == HEAD_STATE_BYTES ? 1 : -1];
typedef char macros_count_the_block[ENTROPI_LEARNING_BYTES(8, 2) == 8 + 8 * (2 + HEAD_BLOCK) ? 1 : -1];

linear_head locate_head(const entropi *self)
{
    const image_header image = read_header(self->image);
    const entropi_head_config *config = &self->head;
    const uint32_t classes = config->classes;
    uint8_t *a = self->arena;
    linear_head h = {
        .config = config,
        .mode = memory_modes[MODE_OF(config->bytes_per_parameter)],
        .centers = (const int8_t *)self->image + image.centers_at,
        .scales = self->image + image.scales_at,
        .gain = image.feature_gain,
        .features = self->features,
        .classes = classes,
        .state = (head_state *)(void *)a,
        .biases = (float *)(void *)(a + HEAD_STATE_BYTES),
        .batch_errors = (int32_t *)(void *)(a + self->batch_at),
        .scores = (float *)(void *)(a + self->working_at),
    };
    h.known = (uint32_t *)(void *)(h.biases + classes);
    h.weights = h.known + (classes + KNOWN_BITS - 1) / KNOWN_BITS;
    h.batch = (int8_t *)(h.batch_errors + classes * config->batch);
    h.errors = (int32_t *)(void *)(h.scores + classes);
    h.block = h.errors + classes;
    h.row = (int8_t *)(h.block + classes * HEAD_BLOCK);
    if (config->bytes_per_parameter >= 8) {
        h.momentum_bound = (uint32_t *)(void *)(a + self->momentum_at);
        h.bias_momentum = (float *)(void *)(h.momentum_bound + 1);
        h.momentum = (int32_t *)(void *)(h.bias_momentum + classes);
    }
    if (config->bytes_per_parameter == 12) {
        h.bias_gradient = (int32_t *)(void *)(a + self->gradient_at);
        h.gradient = h.bias_gradient + classes;
    }
    return h;
}

uint32_t head_format(const entropi *self)
{
    return (uint32_t)self->head.classes | (self->head.bytes_per_parameter == 2 ? 2u : 4u) << 16;
}

static int finite(float x) { return x - x == 0.0f; }

/* Turn the scores of the classes known so far, and of `label`, into probabilities, those of other classes and of all
 * before `first` into 0. best gets the class with the highest score, the first of equals. */
static entropi_status softmax(const linear_head *h, uint32_t first, uint32_t label, uint32_t *best, float *log_sum)
{
    float *scores = h->scores, top = 0.0f, sum = 0.0f;
    *best = h->classes;
    for (uint32_t c = 0; c < h->classes; c++) {
        const int known = c >= first && (c == label || (h->known[c / KNOWN_BITS] >> c % KNOWN_BITS & 1u));
        if (!finite(scores[c]))
            return ENTROPI_E_NUMERIC;
        if (!known)
            scores[c] = -3e38f;
        else if (*best == h->classes || scores[c] > top)
            *best = c, top = scores[c];
    }
    for (uint32_t c = 0; c < h->classes; c++) {
        scores[c] = exp_negative(scores[c] - top);
        sum += scores[c];
    }
    for (uint32_t c = 0; c < h->classes; c++)
        scores[c] /= sum;
    *log_sum = top + log_above_one(sum);
    return ENTROPI_OK;
}

entropi_status entropi_predict(entropi *self, const int8_t *features, size_t features_length, uint16_t *label,
                               float *score)
{
    if (!self || !self->image || !features || !label || !score || features_length != self->features)
        return ENTROPI_E_ARGUMENT;
    const linear_head h = locate_head(self);
    uint32_t best;
    float log_sum;
    standardise(&h, features, h.row);
    score_classes(&h, h.row);
    const entropi_status status = softmax(&h, 0, h.classes, &best, &log_sum);
    if (status)
        return status;
    *label = (uint16_t)best;
    *score = h.scores[best];
    return ENTROPI_OK;
}

/* Errors, label minus probability, as integers; returns the largest magnitude. */
static uint32_t find_errors(const linear_head *h, uint32_t label, float scale, int32_t *errors)
{
    uint32_t largest = 0;
    for (uint32_t c = 0; c < h->classes; c++) {
        const float error = scale * ((c == label ? 1.0f : 0.0f) - h->scores[c]);
        errors[c] = (int32_t)(error + (error < 0.0f ? -0.5f : 0.5f));
        const uint32_t size = (uint32_t)(errors[c] < 0 ? -errors[c] : errors[c]);
        largest = size > largest ? size : largest;
    }
    return largest;
}

/* Where the next sample's standardised features go. */
static int8_t *next_row(const entropi *self, const linear_head *h)
{
    return stores_batch(&self->head) ? h->batch + self->pending * h->features : h->row;
}

/* Learn x, which lies in the next row, to be told from the known classes from number `first` on. */
static entropi_status take_in(entropi *self, const linear_head *h, const int8_t *x, uint32_t first, uint16_t label,
                              float *loss)
{
    uint32_t best;
    float log_sum, scale;
    score_classes(h, x);
    const float own = h->scores[label];
    entropi_status status = softmax(h, first, label, &best, &log_sum);
    *loss = status ? 0.0f : log_sum - own;
    if (status || !finite(*loss))
        return ENTROPI_E_NUMERIC;
    status = make_room(h, self->pending, &scale);
    if (status)
        return status;

    h->known[label / KNOWN_BITS] |= 1u << label % KNOWN_BITS;
    const int is_stored = stores_batch(&self->head);
    int32_t *errors = is_stored ? h->batch_errors + self->pending * h->classes : h->errors;
    self->reach = (self->pending ? self->reach : 0) + find_errors(h, label, scale, errors) / 2 + 1;
    if (holds_gradient(&self->head))
        for (uint32_t c = 0; c < h->classes; c++)
            h->bias_gradient[c] += errors[c];
    if (++self->pending == self->head.batch) {
        if (is_stored)
            take_step(h, h->batch, h->batch_errors, self->pending, self->pending, self->reach);
        else
            take_step(h, x, errors, 1, self->pending, self->reach);
        self->pending = 0;
    } else if (holds_gradient(&self->head)) {
        add_sample(h, h->gradient, x, errors);
    }
    return ENTROPI_OK;
}

entropi_status entropi_learn(entropi *self, const int8_t *features, size_t features_length, uint16_t label,
                             float *loss)
{
    if (!self || !self->image || !features || !loss || features_length != self->features ||
        label >= self->head.classes)
        return ENTROPI_E_ARGUMENT;
    const linear_head h = locate_head(self);
    const uint32_t known_before = h.classes - self->head.new_classes;
    uint16_t old_label;
    float old_loss;
    const int8_t *old = draw_sample(self, &old_label);
    int8_t *row = next_row(self, &h);
    standardise(&h, features, row);
    const entropi_status status = take_in(self, &h, row, old && label >= known_before ? known_before : 0, label, loss);
    if (status)
        return status;
    if (old) {
        row = next_row(self, &h);
        copy_bytes(row, old, h.features);
        (void)take_in(self, &h, row, 0, old_label, &old_loss); /* one that is refused is drawn in vain */
    }
    int8_t *kept = keep_sample(self, label);
    if (kept)
        standardise(&h, features, kept);
    return ENTROPI_OK;
}

entropi_status entropi_flush(entropi *self)
{
    if (!self || !self->image)
        return ENTROPI_E_ARGUMENT;
    if (self->pending) {
        const linear_head h = locate_head(self);
        const uint32_t held = stores_batch(&self->head) ? self->pending : 0;
        take_step(&h, h.batch, h.batch_errors, held, self->pending, self->reach);
        self->pending = 0;
    }
    return ENTROPI_OK;
}

entropi_status entropi_head(const entropi *self, size_t first, size_t count, float *parameters)
{
    if (!self || !self->image || !parameters)
        return ENTROPI_E_ARGUMENT;
    const linear_head h = locate_head(self);
    const size_t weights = (size_t)h.classes * h.features, all = weights + h.classes;
    if (first > all || count > all - first)
        return ENTROPI_E_ARGUMENT;
    for (size_t i = first; i < first + count; i++)
        *parameters++ = i < weights ? read_weight(&h, (uint32_t)(i % h.features * h.classes + i / h.features))
                                    : h.biases[i - weights];
    return ENTROPI_OK;
}
