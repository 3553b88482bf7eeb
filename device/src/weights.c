/* The head's weights and momentum as block floats, and all that is done to them. It is integer arithmetic on mantissas:
 * the same bits on every core, and fast without an FPU. docs/learning.md has the derivation. Here is what does not depend
 * on the bytes a parameter takes. */
#include "weights.h"

enum {
    LOWEST_EXPONENT = -60,
    HIGHEST_EXPONENT = 0,
    SCALE_BITS = 4,          /* a feature's scale is a multiple of 1/16 */
    STEP_LIMIT = 0x3FF00000, /* a step; an error, which is twice as large, fits 32 bits */
    ROOM = 0x40000000,       /* weights and step, when the exponent has been raised */
    CAPACITY = 0x7FF00000    /* weights and step at most: 2^31, less what rounding adds */
};

static float power_of_two(int32_t exponent)
{
    const union {
        uint32_t bits;
        float value;
    } u = {(uint32_t)(exponent + 127) << 23};
    return u.value;
}

static int has_momentum(const linear_head *h) { return h->config->bytes_per_parameter >= 8; }

static float learning_rate(const linear_head *h, uint32_t step)
{
    const entropi_head_config *config = h->config;
    const float rate = config->learning_rate / (1.0f + config->learning_rate_decay * (float)step);
    if (!config->steps)
        return rate;
    return rate * ((float)(step < config->steps ? config->steps - step : 1) / (float)config->steps);
}

/* What a step takes of a weight to let it decay, in 2^-32 of it. */
static int32_t decay(const linear_head *h)
{
    return (int32_t)(learning_rate(h, h->state->steps) * h->config->weight_decay * 4294967296.0f);
}

void start_head(const linear_head *h)
{
    h->state->exponent = LOWEST_EXPONENT;
    for (uint32_t c = 0; c < h->classes - h->config->new_classes; c++)
        h->known[c / KNOWN_BITS] |= 1u << c % KNOWN_BITS;
}

float read_weight(const linear_head *h, uint32_t at)
{
    const int is_short = h->config->bytes_per_parameter == 2;
    const int32_t mantissa = is_short ? ((int16_t *)h->weights)[at] * 65536 : ((int32_t *)h->weights)[at];
    return (float)mantissa * power_of_two(h->state->exponent);
}

void standardise(const linear_head *h, const int8_t *f, int8_t *x)
{
    const int8_t *center = h->centers, *const end = f + h->features;
    const uint8_t *scale = h->scales;
    UNROLLED(4)
    while (f < end) {
        const int32_t scaled = (*f++ - *center++) * *scale++;
        *x++ = clamp_i8((scaled + (1 << (SCALE_BITS - 1))) >> SCALE_BITS, -128, 127);
    }
}

void score_classes(const linear_head *h, const int8_t *x)
{
    const sample_loop loop = {
        .x = x, .end = x + h->features, .classes = h->classes, .scores = h->scores, .weights = h->weights};
    h->mode->score(&loop);
    const float scale = h->gain * power_of_two(h->state->exponent);
    for (uint32_t c = 0; c < h->classes; c++)
        h->scores[c] = h->biases[c] + scale * h->scores[c];
}

SPECIALISE void add(const sample_loop *l, uint32_t first, uint32_t width)
{
    const uint32_t classes = l->classes;
    const int8_t *const end = l->end;
    int32_t e[5], *sum = l->sum + first;
    load_errors(l, first, width, e);
    for (const int8_t *at = l->x; at < end; sum += classes) {
        const int32_t x = *at++;
        OWN_REGISTER(sum)
#define DO(k) sum[k] = add_product(sum[k], e[k], x);
        EACH_CLASS(width, DO)
#undef DO
    }
}

NOT_INLINED void add_5(const sample_loop *l, uint32_t first) { add(l, first, 5); }
NOT_INLINED void add_2(const sample_loop *l, uint32_t first) { add(l, first, 2); }
NOT_INLINED void add_1(const sample_loop *l, uint32_t first) { add(l, first, 1); }

/* gradient += errors times the features from number `from` to `to`, of one sample */
static void add_part(const linear_head *h, int32_t *gradient, const int8_t *x, const int32_t *errors, uint32_t from,
                     uint32_t to)
{
    const sample_loop loop = {
        .x = x + from, .end = x + to, .classes = h->classes, .errors = errors, .sum = gradient};
    by_fives(&loop, add_5, add_2, add_1);
}

void add_sample(const linear_head *h, int32_t *gradient, const int8_t *x, const int32_t *errors)
{
    add_part(h, gradient, x, errors, 0, h->features);
}

void by_blocks(const linear_head *h, const step *s, uint32_t count, use_block *use, void *context)
{
    for (uint32_t i = 0; i < h->classes * HEAD_BLOCK; i++)
        h->block[i] = 0;
    for (uint32_t from = 0; from < h->features; from += HEAD_BLOCK) {
        const uint32_t to = h->features - from < HEAD_BLOCK ? h->features : from + HEAD_BLOCK;
        for (uint32_t i = 0; i < count; i++)
            add_part(h, h->block, s->samples + i * h->features, s->errors + i * h->classes, from, to);
        use(context, h, s, from, to);
    }
}

static void add_block(void *context, const linear_head *h, const step *s, uint32_t from, uint32_t to)
{
    int32_t *const sums = (int32_t *)context + from * h->classes;
    for (uint32_t i = 0; i < (to - from) * h->classes; i++) {
        sums[i] += apply_factor(h->block[i], s->factor);
        h->block[i] = 0;
    }
}

void add_by_blocks(const linear_head *h, const step *s, int32_t *sums) { by_blocks(h, s, s->held, add_block, sums); }

/* No mantissa of the weights, and of the momentum, is larger. */
typedef struct {
    uint32_t weights, momentum;
} bounds;

static bounds known_bounds(const linear_head *h)
{
    return (bounds){h->state->bound, has_momentum(h) ? *h->momentum_bound : 0};
}

/* What a step moves a weight by at most, if the gradient alone moves it by so much. */
static uint32_t step_bound(const linear_head *h, bounds b, uint32_t gradient)
{
    const uint32_t decayed = (uint32_t)multiply_high((int32_t)b.weights, decay(h));
    return b.momentum + gradient + decayed + h->mode->last_bit;
}

static int fits(const linear_head *h, bounds b, float gradient, uint32_t limit)
{
    if (gradient > (float)STEP_LIMIT)
        return 0;
    const uint32_t step = step_bound(h, b, (uint32_t)gradient);
    return step <= STEP_LIMIT && b.weights + step <= limit;
}

entropi_status make_room(const linear_head *h, uint32_t pending, float *error_scale)
{
    const float rate = learning_rate(h, h->state->steps) * h->gain;
    /* A mean of errors up to 1 times features up to 2^8. */
    float gradient = rate * (float)(1 << FEATURE_BITS) * power_of_two(-h->state->exponent);
    bounds b = known_bounds(h);
    int32_t raised = 0;
    /* Bounds that have grown step by step are made tight again before the exponent is raised. */
    if (!pending && !fits(h, b, gradient, CAPACITY)) {
        if (has_momentum(h))
            b.momentum = largest_word(h->momentum, weight_count(h));
        if (!fits(h, b, gradient, CAPACITY)) {
            b.weights = h->mode->largest_weight(h);
            for (; !fits(h, b, gradient, ROOM); raised++) {
                if (h->state->exponent + raised == HIGHEST_EXPONENT)
                    return ENTROPI_E_NUMERIC;
                gradient *= 0.5f;
                b = (bounds){(b.weights + h->mode->last_bit) / 2, (b.momentum + 1) / 2};
            }
        }
        if (h->state->steps) /* else all are zeros, and there is a long way to go */
            for (int32_t i = 0; i < raised; i++)
                h->mode->halve(h);
        h->state->exponent += raised;
        h->state->bound = b.weights;
        if (has_momentum(h))
            *h->momentum_bound = b.momentum;
    }
    *error_scale = rate / (float)h->config->batch * power_of_two(ERROR_BITS - h->state->exponent);
    return ENTROPI_OK;
}

static mean_factor factor_of(uint32_t batch, uint32_t pending)
{
    if (batch == pending)
        return (mean_factor){0, 0};
    uint32_t quotient = batch / pending, rest = batch % pending;
    int shift = 0;
    for (; shift < 30 && quotient < 1u << 30; shift++) { /* bit by bit: a division of 64 bits takes 1.4 KB of flash */
        const int one = rest >= pending - rest;
        quotient = quotient * 2 + (uint32_t)one;
        rest = one ? rest - (pending - rest) : rest * 2;
    }
    return (mean_factor){(int64_t)quotient + (rest + pending / 2 >= pending), shift};
}

static movement movement_of(float keep, int32_t decay)
{
    const int whole = keep >= 0.5f;
    return (movement){decay, (int32_t)((whole ? keep - 1.0f : keep) * 4294967296.0f), -whole};
}

static void move_biases(const linear_head *h, const int32_t *errors, uint32_t pending, float keep)
{
    const float scale = power_of_two(h->state->exponent - ERROR_BITS) / h->gain *
                        ((float)h->config->batch / (float)pending);
    for (uint32_t c = 0; c < h->classes; c++) {
        int32_t sum = 0;
        if (holds_gradient(h->config)) {
            sum = h->bias_gradient[c];
            h->bias_gradient[c] = 0;
        } else {
            for (uint32_t s = 0; s < pending; s++)
                sum += errors[s * h->classes + c];
        }
        float step = scale * (float)sum;
        if (has_momentum(h)) {
            step += h->bias_momentum[c];
            h->bias_momentum[c] = keep * step;
        }
        h->biases[c] += step;
    }
}

void take_step(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t held, uint32_t pending,
               uint32_t reach)
{
    const uint32_t steps = h->state->steps;
    const float keep = h->config->momentum * (learning_rate(h, steps + 1) / learning_rate(h, steps));
    const step s = {samples, errors, held, factor_of(h->config->batch, pending), movement_of(keep, decay(h))};
    const uint32_t bound = step_bound(h, known_bounds(h), (uint32_t)apply_factor((int32_t)reach, s.factor) + 1);

    move_biases(h, errors, pending, keep);
    h->mode->move(h, &s);
    if (has_momentum(h))
        *h->momentum_bound = (uint32_t)kept((int32_t)bound, s.by) + 1;
    h->state->bound += bound;
    h->state->steps++;
}
