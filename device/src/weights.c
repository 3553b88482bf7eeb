/* The head's weights and momentum as block floats, and all that is done to them. It is integer arithmetic on mantissas:
 * the same bits on every core, and fast without an FPU. docs/learning.md has the derivation. */
#include "internal.h"

/* Cores without a long multiply take the same products apart into halves of 16 bits. */
#if !defined(ENTROPI_SHORT_MULTIPLY)
#if defined(__ARM_ARCH_ISA_THUMB) && __ARM_ARCH_ISA_THUMB == 1
#define ENTROPI_SHORT_MULTIPLY 1
#else
#define ENTROPI_SHORT_MULTIPLY 0
#endif
#endif

/* Most classes that a loop over the features takes at once: as many as the registers hold. */
#if ENTROPI_SHORT_MULTIPLY
enum { SCORES_AT_ONCE = 1, GRADIENTS_AT_ONCE = 1 };
#else
enum { SCORES_AT_ONCE = 3, GRADIENTS_AT_ONCE = 5 };
#endif

enum {
    LOWEST_EXPONENT = -60,
    HIGHEST_EXPONENT = 0,
    FEATURE_BITS = 8,              /* |feature - center| < 2^8 */
    ERROR_BITS = FEATURE_BITS + 1, /* an error is a multiple of 2^(exponent - 9) */
    STEP_LIMIT = 0x3FF00000,       /* a step, twice which fits 32 bits */
    ROOM = 0x40000000,             /* weights and step, when the exponent has been raised */
    CAPACITY = 0x7FF00000,         /* weights and step at most: 2^31, less what rounding adds */
    SUMS_BEFORE_CARRY = 128        /* products of 16 and 9 bits that 32 bits can sum */
};

/* sum + round(error * x / 2^9) */
static inline int32_t add_product(int32_t sum, int32_t error, int32_t x)
{
#if ENTROPI_SHORT_MULTIPLY
    const int32_t low = error & ((1 << ERROR_BITS) - 1);
    return sum + (error >> ERROR_BITS) * x + ((low * x + (1 << FEATURE_BITS)) >> ERROR_BITS);
#else
    const int32_t high = (int32_t)((uint32_t)x << (32 - ERROR_BITS));
    return sum + (int32_t)(((int64_t)error * high + 0x80000000) >> 32);
#endif
}

/* round(a * b / 2^32); b >= 0 */
static inline int32_t multiply_high(int32_t a, int32_t b)
{
#if ENTROPI_SHORT_MULTIPLY
    const int32_t a1 = a >> 16, b1 = b >> 16;
    const uint32_t a0 = (uint32_t)a & 0xFFFFu, b0 = (uint32_t)b & 0xFFFFu;
    const uint32_t low = a0 * (uint32_t)b1 + (a0 * b0 >> 16);
    const int32_t high = a1 * (int32_t)b0;
    const uint32_t carry = (low & 0xFFFFu) + ((uint32_t)high & 0xFFFFu) + 0x8000u;
    return a1 * b1 + (int32_t)(low >> 16) + (high >> 16) + (int32_t)(carry >> 16);
#else
    return (int32_t)(((int64_t)a * b + 0x80000000) >> 32);
#endif
}

static float power_of_two(int32_t exponent)
{
    const union {
        uint32_t bits;
        float value;
    } u = {(uint32_t)(exponent + 127) << 23};
    return u.value;
}

static int is_short(const linear_head *h) { return h->config->bytes_per_parameter == 2; }

static int has_momentum(const linear_head *h) { return h->config->bytes_per_parameter >= 8; }

static uint32_t weight_count(const linear_head *h) { return h->features * h->classes; }

static float learning_rate(const linear_head *h, uint32_t step)
{
    return h->config->learning_rate / (1.0f + h->config->learning_rate_decay * (float)step);
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
    const int32_t mantissa = is_short(h) ? ((int16_t *)h->weights)[at] * 65536 : ((int32_t *)h->weights)[at];
    return (float)mantissa * power_of_two(h->state->exponent);
}

/* DO(0), DO(1) ... for a constant number of classes: 1, 2, 3 or 5. */
#define EACH_CLASS(width, DO)                                                                                          \
    DO(0)                                                                                                              \
    if ((width) > 1) {                                                                                                 \
        DO(1)                                                                                                          \
    }                                                                                                                  \
    if ((width) > 2) {                                                                                                 \
        DO(2)                                                                                                          \
    }                                                                                                                  \
    if ((width) > 3) {                                                                                                 \
        DO(3)                                                                                                          \
        DO(4)                                                                                                          \
    }

#if ENTROPI_SHORT_MULTIPLY

SPECIALISE void score_some(const linear_head *h, const int8_t *f, int halves, uint32_t first, uint32_t width)
{
    (void)width;
    const int8_t *c = h->centers, *const end = f + h->features;
    int64_t sum = 0;
    for (uint32_t at = first; f < end;) {
        const int8_t *const stop = end - f > SUMS_BEFORE_CARRY ? f + SUMS_BEFORE_CARRY : end;
        int32_t low = 0, high = 0;
        for (; f < stop; at += h->classes) {
            const int32_t x = *f++ - *c++;
            if (halves) {
                high += ((const int16_t *)h->weights)[at] * x;
            } else {
                const int32_t w = ((const int32_t *)h->weights)[at];
                low += (w & 0xFFFF) * x;
                high += (w >> 16) * x;
            }
        }
        sum += (int64_t)high * 65536 + low;
    }
    h->scores[first] = (float)sum;
}

#else

SPECIALISE void score_some(const linear_head *h, const int8_t *f, int halves, uint32_t first, uint32_t width)
{
    const int8_t *c = h->centers, *const end = f + h->features;
    const int16_t *short_weights = (const int16_t *)h->weights + first;
    const int32_t *weights = (const int32_t *)h->weights + first;
    const uint32_t classes = h->classes;
    int64_t sums[5] = {0}; /* of them width are used */
    for (; f < end; short_weights += classes, weights += classes) {
        const int32_t x = *f++ - *c++;
#define DO(k) sums[k] += halves ? (int64_t)short_weights[k] * x : (int64_t)weights[k] * x;
        EACH_CLASS(width, DO)
#undef DO
    }
#define DO(k) h->scores[first + k] = (float)(halves ? sums[k] * 65536 : sums[k]);
    EACH_CLASS(width, DO)
#undef DO
}

#endif

SPECIALISE void score_all(const linear_head *h, const int8_t *features, int halves)
{
    uint32_t c = 0;
    for (; SCORES_AT_ONCE == 3 && (c + 3 == h->classes || c + 5 <= h->classes); c += 3)
        score_some(h, features, halves, c, 3);
    for (; SCORES_AT_ONCE == 3 && c + 2 <= h->classes; c += 2)
        score_some(h, features, halves, c, 2);
    for (; c < h->classes; c++)
        score_some(h, features, halves, c, 1);
}

void score_classes(const linear_head *h, const int8_t *features)
{
    if (is_short(h))
        score_all(h, features, 1);
    else
        score_all(h, features, 0);
    const float scale = h->gain * power_of_two(h->state->exponent);
    for (uint32_t c = 0; c < h->classes; c++)
        h->scores[c] = h->biases[c] + scale * h->scores[c];
}

SPECIALISE void add_some(int32_t *gradient, uint32_t classes, const int32_t *errors, const int8_t *f, const int8_t *c,
                         const int8_t *end, uint32_t width)
{
    int32_t e[5];
#define DO(k) e[k] = errors[k];
    EACH_CLASS(width, DO)
#undef DO
    for (; f < end; gradient += classes) {
        const int32_t x = *f++ - *c++;
#define DO(k) gradient[k] = add_product(gradient[k], e[k], x);
        EACH_CLASS(width, DO)
#undef DO
    }
}

/* Functions to themselves, so that the loops have all registers. */
NOT_INLINED void add_5(int32_t *gradient, uint32_t classes, const int32_t *errors, const int8_t *f, const int8_t *c,
                       const int8_t *end)
{
    add_some(gradient, classes, errors, f, c, end, 5);
}

NOT_INLINED void add_2(int32_t *gradient, uint32_t classes, const int32_t *errors, const int8_t *f, const int8_t *c,
                       const int8_t *end)
{
    add_some(gradient, classes, errors, f, c, end, 2);
}

NOT_INLINED void add_1(int32_t *gradient, uint32_t classes, const int32_t *errors, const int8_t *f, const int8_t *c,
                       const int8_t *end)
{
    add_some(gradient, classes, errors, f, c, end, 1);
}

/* gradient += errors times the features from number `from` to `to`, of one sample */
static void add_part(const linear_head *h, int32_t *gradient, const int8_t *features, const int32_t *errors,
                     uint32_t from, uint32_t to)
{
    const uint32_t classes = h->classes;
    const int8_t *const f = features + from, *const centers = h->centers + from, *const end = features + to;
    uint32_t c = 0;
    for (; GRADIENTS_AT_ONCE == 5 && c + 5 <= classes; c += 5)
        add_5(gradient + c, classes, errors + c, f, centers, end);
    for (; GRADIENTS_AT_ONCE == 5 && c + 2 <= classes; c += 2)
        add_2(gradient + c, classes, errors + c, f, centers, end);
    for (; c < classes; c++)
        add_1(gradient + c, classes, errors + c, f, centers, end);
}

void add_sample(const linear_head *h, int32_t *gradient, const int8_t *features, const int32_t *errors)
{
    add_part(h, gradient, features, errors, 0, h->features);
}

static uint32_t largest(const int32_t *words, uint32_t count)
{
    int32_t found = 0;
    for (const int32_t *end = words + count; words < end; words++) {
        const int32_t size = *words ^ *words >> 31; /* or one less */
        found = size > found ? size : found;
    }
    return (uint32_t)found + 1;
}

static uint32_t largest_short(const int16_t *halves, uint32_t count)
{
    int32_t found = 0;
    for (const int16_t *end = halves + count; halves < end; halves++) {
        const int32_t size = *halves < 0 ? -*halves : *halves;
        found = size > found ? size : found;
    }
    return (uint32_t)found << 16;
}

static void halve(int32_t *words, uint32_t count)
{
    for (const int32_t *end = words + count; words < end; words++)
        *words = (*words >> 1) + (*words & 1);
}

static void halve_short(int16_t *halves, uint32_t count)
{
    for (const int16_t *end = halves + count; halves < end; halves++)
        *halves = (int16_t)((*halves >> 1) + (*halves & 1));
}

static void halve_all(const linear_head *h)
{
    const uint32_t count = weight_count(h);
    if (is_short(h))
        halve_short(h->weights, count);
    else
        halve(h->weights, count);
    if (has_momentum(h))
        halve(h->momentum, count);
}

/* No mantissa of the weights, and of the momentum, is larger. */
typedef struct {
    uint32_t weights, momentum;
} bounds;

static bounds known_bounds(const linear_head *h)
{
    return (bounds){h->state->bound, has_momentum(h) ? *h->momentum_bound : 0};
}

/* What rounding a weight can move it by. */
static uint32_t last_bit(const linear_head *h) { return is_short(h) ? 0x10000 : 1; }

/* What a step moves a weight by at most, if the gradient alone moves it by so much. */
static uint32_t step_bound(const linear_head *h, bounds b, uint32_t gradient)
{
    const uint32_t decayed = (uint32_t)multiply_high((int32_t)b.weights, decay(h));
    return b.momentum + gradient + decayed + last_bit(h);
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
        const uint32_t count = weight_count(h);
        if (has_momentum(h))
            b.momentum = largest(h->momentum, count);
        if (!fits(h, b, gradient, CAPACITY)) {
            b.weights = is_short(h) ? largest_short(h->weights, count) : largest(h->weights, count);
            for (; !fits(h, b, gradient, ROOM); raised++) {
                if (h->state->exponent + raised == HIGHEST_EXPONENT)
                    return ENTROPI_E_NUMERIC;
                gradient *= 0.5f;
                b = (bounds){(b.weights + last_bit(h)) / 2, (b.momentum + 1) / 2};
            }
        }
        if (h->state->steps) /* else all are zeros, and there is a long way to go */
            for (int32_t i = 0; i < raised; i++)
                halve_all(h);
        h->state->exponent += raised;
        h->state->bound = b.weights;
        if (has_momentum(h))
            *h->momentum_bound = b.momentum;
    }
    *error_scale = rate / (float)h->config->batch * power_of_two(ERROR_BITS - h->state->exponent);
    return ENTROPI_OK;
}

/* What makes the mean of a batch that is not full from a sum that was divided as if it were. */
typedef struct {
    int64_t multiplier;
    int shift; /* 0 for a full batch */
} mean_factor;

static mean_factor factor_of(uint32_t batch, uint32_t pending)
{
    if (batch == pending)
        return (mean_factor){0, 0};
    int shift = 30;
    while ((batch / pending) >> (31 - shift))
        shift--;
    return (mean_factor){(int64_t)((((uint64_t)batch << shift) + pending / 2) / pending), shift};
}

static inline int32_t apply_factor(int32_t sum, mean_factor f)
{
    return f.shift ? (int32_t)((sum * f.multiplier + ((int64_t)1 << (f.shift - 1))) >> f.shift) : sum;
}

/* Add a block of gradients to weights of 16 bits: rounded up as often as their fraction says. */
static void add_rounded(int16_t *weights, const int32_t *gradient, uint32_t count, mean_factor f, int32_t decay,
                        uint32_t *random)
{
    for (uint32_t i = 0; i < count; i++) {
        const int32_t weight = weights[i] * 65536;
        *random = *random * 1664525u + 1013904223u;
        const int32_t moved = weight - multiply_high(weight, decay) + apply_factor(gradient[i], f);
        weights[i] = (int16_t)((moved + (int32_t)(*random >> 16)) >> 16);
    }
}

/* The step block by block, where the sum over the samples is needed before it can be added. */
static void add_by_blocks(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t pending,
                          mean_factor f)
{
    uint32_t random = mix(mix(h->config->seed) ^ h->state->steps);
    for (uint32_t from = 0; from < h->features; from += HEAD_BLOCK) {
        const uint32_t to = h->features - from < HEAD_BLOCK ? h->features : from + HEAD_BLOCK;
        const uint32_t first = from * h->classes, count = (to - from) * h->classes;
        for (uint32_t i = 0; i < count; i++)
            h->block[i] = 0;
        for (uint32_t s = 0; s < pending; s++)
            add_part(h, h->block, samples + s * h->features, errors + s * h->classes, from, to);
        if (is_short(h)) {
            add_rounded((int16_t *)h->weights + first, h->block, count, f, decay(h), &random);
        } else {
            int32_t *sums = (has_momentum(h) ? h->momentum : (int32_t *)h->weights) + first;
            for (uint32_t i = 0; i < count; i++)
                sums[i] += apply_factor(h->block[i], f);
        }
    }
}

static void add_gradient(const linear_head *h, mean_factor f)
{
    int32_t *g = h->gradient, *m = h->momentum;
    for (const int32_t *end = g + weight_count(h); g < end; g++, m++) {
        *m += apply_factor(*g, f);
        *g = 0;
    }
}

/* The gradient has been added to the momentum: move a weight by it, and let the momentum be what the next step keeps of
 * this one. */
SPECIALISE void move_weight(int32_t *w, int32_t *m, int32_t keep, int32_t decay)
{
    const int32_t step = *m - (decay ? multiply_high(*w, decay) : 0);
    *w += step;
    *m = multiply_high(2 * step, keep);
}

SPECIALISE void move_weights(int32_t *w, int32_t *m, uint32_t count, int32_t keep, int32_t decay)
{
    for (; count >= 4; count -= 4, w += 4, m += 4) {
        move_weight(w, m, keep, decay);
        move_weight(w + 1, m + 1, keep, decay);
        move_weight(w + 2, m + 2, keep, decay);
        move_weight(w + 3, m + 3, keep, decay);
    }
    for (; count; count--)
        move_weight(w++, m++, keep, decay);
}

static void decay_weights(int32_t *w, uint32_t count, int32_t decay)
{
    for (const int32_t *end = w + count; w < end; w++)
        *w -= multiply_high(*w, decay);
}

static void move_biases(const linear_head *h, const int32_t *errors, uint32_t pending, float keep)
{
    const float scale = power_of_two(h->state->exponent - ERROR_BITS) / h->gain *
                        ((float)h->config->batch / (float)pending);
    for (uint32_t c = 0; c < h->classes; c++) {
        int32_t sum = 0;
        if (h->bias_gradient) {
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

void take_step(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t pending, uint32_t reach)
{
    const uint32_t steps = h->state->steps, count = weight_count(h);
    const mean_factor f = factor_of(h->config->batch, pending);
    const float keep = h->config->momentum * (learning_rate(h, steps + 1) / learning_rate(h, steps));
    const int32_t decay_part = decay(h), keep_part = (int32_t)(keep * 2147483648.0f);
    const uint32_t step = step_bound(h, known_bounds(h), (uint32_t)apply_factor((int32_t)reach, f) + 1);

    move_biases(h, errors, pending, keep);
    if (!has_momentum(h) && !is_short(h) && decay_part)
        decay_weights(h->weights, count, decay_part);
    if (h->gradient) {
        add_gradient(h, f);
    } else if (is_short(h) || f.shift) {
        add_by_blocks(h, samples, errors, pending, f);
    } else {
        for (uint32_t s = 0; s < pending; s++)
            add_sample(h, has_momentum(h) ? h->momentum : h->weights, samples + s * h->features,
                       errors + s * h->classes);
    }
    if (has_momentum(h)) {
        if (decay_part)
            move_weights(h->weights, h->momentum, count, keep_part, decay_part);
        else
            move_weights(h->weights, h->momentum, count, keep_part, 0);
        *h->momentum_bound = (uint32_t)multiply_high((int32_t)(2 * step), keep_part) + 1;
    }
    h->state->bound += step;
    h->state->steps++;
}
