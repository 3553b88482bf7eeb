/* The head's weights and momentum as block floats, and all that is done to them. It is integer arithmetic on mantissas:
 * the same bits on every core, and fast without an FPU. docs/learning.md has the derivation. */
#include "head.h"

enum {
    LOWEST_EXPONENT = -60,
    HIGHEST_EXPONENT = 0,
    SCALE_BITS = 4,                /* a feature's scale is a multiple of 1/16 */
    FEATURE_BITS = 7,              /* |x| <= 2^7 */
    ERROR_BITS = FEATURE_BITS + 1, /* an error is a multiple of 2^(exponent - 8) */
    STEP_LIMIT = 0x3FF00000,       /* a step; an error, which is twice as large, fits 32 bits */
    ROOM = 0x40000000,             /* weights and step, when the exponent has been raised */
    CAPACITY = 0x7FF00000,         /* weights and step at most: 2^31, less what rounding adds */
    SUMS_BEFORE_CARRY = 256        /* products of 16 and 8 bits that 32 bits can sum */
};

/* round(a * b / 2^32) */
static inline int32_t multiply_high(int32_t a, int32_t b) { return add_high(0, a, b); }

/* sum + round(error * x / 2^8) */
static inline int32_t add_product(int32_t sum, int32_t error, int32_t x)
{
#if ENTROPI_SHORT_MULTIPLY
    const int32_t low = error & ((1 << ERROR_BITS) - 1);
    return sum + (error >> ERROR_BITS) * x + ((low * x + (1 << FEATURE_BITS)) >> ERROR_BITS);
#else
    return add_high(sum, error, (int32_t)((uint32_t)x << (32 - ERROR_BITS)));
#endif
}

/* A weight of 16 bits is rounded up as often as its fraction says: a number of 16 bits is added to the fraction, one
 * for all classes of a feature. */
static inline int32_t draw_rounding(uint32_t *random)
{
    *random *= 62605u; /* 5 modulo 8: odd numbers come back after 2^30 */
    return (int32_t)(*random >> 16);
}

static inline int16_t add_upper(int16_t weight, int32_t step) { return (int16_t)(weight + (step >> 16)); }

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

/* A loop that moves x to end, two steps at a time. */
#define BY_TWOS(x, end, STEP)                                                                                          \
    if ((end - x) & 1) {                                                                                               \
        STEP                                                                                                           \
    }                                                                                                                  \
    while (x < end) {                                                                                                  \
        STEP                                                                                                           \
        STEP                                                                                                           \
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

/* One sample: a loop over its features takes a few classes at once. */
typedef struct {
    const int8_t *x, *end;
    uint32_t classes;
    float *scores;
    const int32_t *errors;
    int32_t *sum;    /* of gradients: what the sample is added to; of those before the step's last sample, or NULL */
    void *weights;   /* scored; moved, where the sample is the step's last */
    int32_t *momentum;
    int32_t keep;    /* of momentum, in 2^-32, less 1 */
    uint32_t random; /* for weights of 16 bits */
} sample_loop;

/* Weights of 16 bits: sums of 32 bits do for a while. */
SPECIALISE void score_short(const sample_loop *l, uint32_t first, uint32_t width)
{
    const int16_t *w = (const int16_t *)l->weights + first;
    const uint32_t classes = l->classes;
    int64_t sums[5] = {0}; /* of them width are used */
    for (const int8_t *x = l->x; x < l->end;) {
        const int8_t *const stop = l->end - x > SUMS_BEFORE_CARRY ? x + SUMS_BEFORE_CARRY : l->end;
        int32_t parts[5] = {0};
#define DO(k) parts[k] += w[k] * *x;
#define STEP OWN_REGISTER(w) EACH_CLASS(width, DO) w += classes, x++;
        BY_TWOS(x, stop, STEP)
#undef STEP
#undef DO
#define DO(k) sums[k] += parts[k];
        EACH_CLASS(width, DO)
#undef DO
    }
#define DO(k) l->scores[first + k] = (float)(sums[k] * 65536);
    EACH_CLASS(width, DO)
#undef DO
}

#if ENTROPI_SHORT_MULTIPLY

SPECIALISE void score(const sample_loop *l, uint32_t first, uint32_t width)
{
    (void)width;
    const int32_t *w = (const int32_t *)l->weights + first;
    int64_t sum = 0;
    for (const int8_t *x = l->x; x < l->end;) {
        const int8_t *const stop = l->end - x > SUMS_BEFORE_CARRY ? x + SUMS_BEFORE_CARRY : l->end;
        int32_t low = 0, high = 0;
        for (; x < stop; x++, w += l->classes) {
            low += (*w & 0xFFFF) * *x;
            high += (*w >> 16) * *x;
        }
        sum += (int64_t)high * 65536 + low;
    }
    l->scores[first] = (float)sum;
}

#else

SPECIALISE void score(const sample_loop *l, uint32_t first, uint32_t width)
{
    const int8_t *const end = l->end;
    const int32_t *w = (const int32_t *)l->weights + first;
    const uint32_t classes = l->classes;
    int64_t sums[5] = {0}; /* of them width are used */
    const int8_t *x = l->x;
#define DO(k) sums[k] += (int64_t)w[k] * *x;
#define STEP OWN_REGISTER(w) EACH_CLASS(width, DO) w += classes, x++;
    BY_TWOS(x, end, STEP)
#undef STEP
#undef DO
#define DO(k) l->scores[first + k] = (float)sums[k];
    EACH_CLASS(width, DO)
#undef DO
}

#endif

/* Functions to themselves, so that the loops have all registers. */
NOT_INLINED void score_3(const sample_loop *l, uint32_t first) { score(l, first, 3); }
NOT_INLINED void score_2(const sample_loop *l, uint32_t first) { score(l, first, 2); }
NOT_INLINED void score_1(const sample_loop *l, uint32_t first) { score(l, first, 1); }
NOT_INLINED void score_short_5(const sample_loop *l, uint32_t first) { score_short(l, first, 5); }
NOT_INLINED void score_short_2(const sample_loop *l, uint32_t first) { score_short(l, first, 2); }
NOT_INLINED void score_short_1(const sample_loop *l, uint32_t first) { score_short(l, first, 1); }

typedef void class_loop(const sample_loop *l, uint32_t first);

/* All classes by threes, twos and ones. */
static void by_threes(const sample_loop *l, class_loop *three, class_loop *two, class_loop *one)
{
    uint32_t c = 0;
    for (; !ENTROPI_SHORT_MULTIPLY && (c + 3 == l->classes || c + 5 <= l->classes); c += 3)
        three(l, c);
    for (; !ENTROPI_SHORT_MULTIPLY && c + 2 <= l->classes; c += 2)
        two(l, c);
    for (; c < l->classes; c++)
        one(l, c);
}

/* All classes by fives, twos and ones. */
static void by_fives(const sample_loop *l, class_loop *five, class_loop *two, class_loop *one)
{
    uint32_t c = 0;
    for (; !ENTROPI_SHORT_MULTIPLY && c + 5 <= l->classes; c += 5)
        five(l, c);
    for (; !ENTROPI_SHORT_MULTIPLY && c + 2 <= l->classes; c += 2)
        two(l, c);
    for (; c < l->classes; c++)
        one(l, c);
}

void score_classes(const linear_head *h, const int8_t *x)
{
    const sample_loop loop = {
        .x = x, .end = x + h->features, .classes = h->classes, .scores = h->scores, .weights = h->weights};
    if (is_short(h))
        by_fives(&loop, score_short_5, score_short_2, score_short_1);
    else
        by_threes(&loop, score_3, score_2, score_1);
    const float scale = h->gain * power_of_two(h->state->exponent);
    for (uint32_t c = 0; c < h->classes; c++)
        h->scores[c] = h->biases[c] + scale * h->scores[c];
}

SPECIALISE void load_errors(const sample_loop *l, uint32_t first, uint32_t width, int32_t *e)
{
#define DO(k) e[k] = l->errors[first + k];
    EACH_CLASS(width, DO)
#undef DO
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

/* The sums, to which the sample is added, are the step: move the weights, and let the sums be what momentum keeps. */
SPECIALISE void move(const sample_loop *l, uint32_t first, uint32_t width, int has_sum)
{
    const uint32_t classes = l->classes;
    const int32_t keep = l->keep;
    const int8_t *const end = l->end;
    int32_t e[5], step[5], *m = l->momentum + first, *w = (int32_t *)l->weights + first;
    int32_t *sum = has_sum ? l->sum + first : NULL;
    load_errors(l, first, width, e);
    for (const int8_t *at = l->x; at < end; m += classes, w += classes) {
        const int32_t x = *at++;
        OWN_REGISTER(m)
        OWN_REGISTER(w)
#define DO(k) step[k] = add_product(m[k], e[k], x);
        EACH_CLASS(width, DO)
#undef DO
        if (has_sum) {
#define DO(k) step[k] += sum[k], sum[k] = 0;
            EACH_CLASS(width, DO)
#undef DO
            sum += classes;
        }
#define DO(k) w[k] += step[k];
        EACH_CLASS(width, DO)
#undef DO
#define DO(k) m[k] = add_high(step[k], step[k], keep);
        EACH_CLASS(width, DO)
#undef DO
    }
}

#if ENTROPI_DSP

/* move(l, first, 5, 0) with what no compiler finds: loads and stores of several words. */
SPECIALISE void move_five(const sample_loop *l, uint32_t first, uint32_t classes)
{
    const uint32_t others = classes - 5;
    const int32_t *const e = l->errors + first, keep = l->keep;
    const int8_t *const end = l->end;
    int32_t *m = l->momentum + first, *w = (int32_t *)l->weights + first;
    for (const int8_t *at = l->x; at < end; m += others, w += others) {
        const uint32_t x = (uint32_t)*at++ << (32 - ERROR_BITS);
        __asm__ volatile("ldm %[e], {r4, r5, r6}\n\t"
                         "ldm %[m], {r8, r10, r12}\n\t"
                         "smmlar r8, r4, %[x], r8\n\t" /* the steps */
                         "smmlar r10, r5, %[x], r10\n\t"
                         "smmlar r12, r6, %[x], r12\n\t"
                         "ldm %[w], {r4, r5, r6}\n\t"
                         "add r4, r4, r8\n\t"
                         "add r5, r5, r10\n\t"
                         "add r6, r6, r12\n\t"
                         "stm %[w]!, {r4, r5, r6}\n\t"
                         "smmlar r8, r8, %[keep], r8\n\t"
                         "smmlar r10, r10, %[keep], r10\n\t"
                         "smmlar r12, r12, %[keep], r12\n\t"
                         "stm %[m]!, {r8, r10, r12}\n\t"
                         "ldrd r4, r5, [%[e], #12]\n\t" /* the same for the other two */
                         "ldrd r8, r10, [%[m]]\n\t"
                         "smmlar r8, r4, %[x], r8\n\t"
                         "smmlar r10, r5, %[x], r10\n\t"
                         "ldrd r4, r5, [%[w]]\n\t"
                         "add r4, r4, r8\n\t"
                         "add r5, r5, r10\n\t"
                         "strd r4, r5, [%[w]], #8\n\t"
                         "smmlar r8, r8, %[keep], r8\n\t"
                         "smmlar r10, r10, %[keep], r10\n\t"
                         "strd r8, r10, [%[m]], #8"
                         : [m] "+r"(m), [w] "+r"(w)
                         : [e] "r"(e), [x] "r"(x), [keep] "r"(keep)
                         : "r4", "r5", "r6", "r8", "r10", "r12", "memory");
    }
}

#else

SPECIALISE void move_five(const sample_loop *l, uint32_t first, uint32_t classes)
{
    (void)classes;
    move(l, first, 5, 0);
}

#endif

SPECIALISE void move_short(const sample_loop *l, uint32_t first, uint32_t width, int has_sum)
{
    const uint32_t classes = l->classes;
    const int8_t *const end = l->end;
    uint32_t random = l->random;
    int32_t e[5], *sum = has_sum ? l->sum + first : NULL;
    int16_t *w = (int16_t *)l->weights + first;
    load_errors(l, first, width, e);
    for (const int8_t *at = l->x; at < end; w += classes) {
        const int32_t x = *at++, up = draw_rounding(&random);
        OWN_REGISTER(w)
        if (has_sum) {
#define DO(k) w[k] = add_upper(w[k], add_product(sum[k] + up, e[k], x)), sum[k] = 0;
            EACH_CLASS(width, DO)
#undef DO
            sum += classes;
        } else {
#define DO(k) w[k] = add_upper(w[k], add_product(up, e[k], x));
            EACH_CLASS(width, DO)
#undef DO
        }
    }
}

NOT_INLINED void add_5(const sample_loop *l, uint32_t first) { add(l, first, 5); }
NOT_INLINED void add_2(const sample_loop *l, uint32_t first) { add(l, first, 2); }
NOT_INLINED void add_1(const sample_loop *l, uint32_t first) { add(l, first, 1); }
NOT_INLINED void move_5(const sample_loop *l, uint32_t first)
{
    if (ENTROPI_DSP && l->classes == 5) /* pointers that only go on */
        move_five(l, first, 5);
    else
        move_five(l, first, l->classes);
}
NOT_INLINED void move_2(const sample_loop *l, uint32_t first) { move(l, first, 2, 0); }
NOT_INLINED void move_1(const sample_loop *l, uint32_t first) { move(l, first, 1, 0); }
NOT_INLINED void move_sum_3(const sample_loop *l, uint32_t first) { move(l, first, 3, 1); }
NOT_INLINED void move_sum_2(const sample_loop *l, uint32_t first) { move(l, first, 2, 1); }
NOT_INLINED void move_sum_1(const sample_loop *l, uint32_t first) { move(l, first, 1, 1); }
NOT_INLINED void move_short_5(const sample_loop *l, uint32_t first) { move_short(l, first, 5, 0); }
NOT_INLINED void move_short_2(const sample_loop *l, uint32_t first) { move_short(l, first, 2, 0); }
NOT_INLINED void move_short_1(const sample_loop *l, uint32_t first) { move_short(l, first, 1, 0); }
NOT_INLINED void move_short_sum_5(const sample_loop *l, uint32_t first) { move_short(l, first, 5, 1); }
NOT_INLINED void move_short_sum_2(const sample_loop *l, uint32_t first) { move_short(l, first, 2, 1); }
NOT_INLINED void move_short_sum_1(const sample_loop *l, uint32_t first) { move_short(l, first, 1, 1); }

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

NOT_INLINED uint32_t largest(const int32_t *words, uint32_t count)
{
    int32_t found = 0;
    UNROLLED(4)
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

NOT_INLINED void halve(int32_t *words, uint32_t count)
{
    UNROLLED(4)
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
    uint32_t quotient = batch / pending, rest = batch % pending;
    int shift = 0;
    for (; shift < 30 && quotient < 1u << 30; shift++) { /* bit by bit: a division of 64 bits takes 1.4 KB of flash */
        const int one = rest >= pending - rest;
        quotient = quotient * 2 + (uint32_t)one;
        rest = one ? rest - (pending - rest) : rest * 2;
    }
    return (mean_factor){(int64_t)quotient + (rest + pending / 2 >= pending), shift};
}

static inline int32_t apply_factor(int32_t sum, mean_factor f)
{
    return f.shift ? (int32_t)((sum * f.multiplier + ((int64_t)1 << (f.shift - 1))) >> f.shift) : sum;
}

/* Add the block to weights of 16 bits, from number `first` on. */
static void move_block_rounded(const linear_head *h, uint32_t first, uint32_t features, mean_factor f, int32_t decay,
                               uint32_t random)
{
    int16_t *w = (int16_t *)h->weights + first;
    int32_t *sum = h->block;
    while (features--) {
        const int32_t up = draw_rounding(&random);
        for (const int16_t *end = w + h->classes; w < end; w++, sum++) {
            *w = add_upper(*w, up + apply_factor(*sum, f) - multiply_high(*w * 65536, decay));
            *sum = 0;
        }
    }
}

static uint32_t rounding_seed(const linear_head *h) { return mix(mix(h->config->seed) ^ h->state->steps) | 1u; }

/* The step block by block, where the sum over the samples is needed before it can be added. */
static void add_by_blocks(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t pending,
                          mean_factor f)
{
    const int32_t decay_part = decay(h);
    const int at_once = is_short(h) && !f.shift && !decay_part; /* the last sample is added as the weights move */
    const int8_t *const last = samples + (pending - 1) * h->features;
    sample_loop moved = {.classes = h->classes, .errors = errors + (pending - 1) * h->classes, .sum = h->block};
    uint32_t random = rounding_seed(h);
    for (uint32_t i = 0; i < h->classes * HEAD_BLOCK; i++)
        h->block[i] = 0;
    for (uint32_t from = 0; from < h->features; from += HEAD_BLOCK, random = mix(random) | 1u) {
        const uint32_t to = h->features - from < HEAD_BLOCK ? h->features : from + HEAD_BLOCK;
        const uint32_t first = from * h->classes, count = (to - from) * h->classes;
        for (uint32_t s = 0; s < pending - (at_once ? 1 : 0); s++)
            add_part(h, h->block, samples + s * h->features, errors + s * h->classes, from, to);
        if (at_once) {
            moved.x = last + from, moved.end = last + to, moved.random = random;
            moved.weights = (int16_t *)h->weights + first;
            by_fives(&moved, move_short_sum_5, move_short_sum_2, move_short_sum_1);
        } else if (is_short(h)) {
            move_block_rounded(h, first, to - from, f, decay_part, random);
        } else {
            int32_t *sums = (has_momentum(h) ? h->momentum : (int32_t *)h->weights) + first;
            for (uint32_t i = 0; i < count; i++) {
                sums[i] += apply_factor(h->block[i], f);
                h->block[i] = 0;
            }
        }
    }
}

/* How a step moves weights that have momentum. */
typedef struct {
    int32_t decay; /* what it takes of a weight, in 2^-32 */
    int32_t keep;  /* what the next step keeps of it, in 2^-32, less 1 where that is more than half */
    int32_t whole; /* -1 there, else 0 */
} movement;

static movement movement_of(float keep, int32_t decay)
{
    const int whole = keep >= 0.5f;
    return (movement){decay, (int32_t)((whole ? keep - 1.0f : keep) * 4294967296.0f), -whole};
}

static inline int32_t kept(int32_t step, movement by) { return add_high(step & by.whole, step, by.keep); }

/* Move the weights by what has been added to the momentum, or by a gradient that has not. */
static void move_weights(const linear_head *h, int32_t *gradient, mean_factor f, movement by)
{
    int32_t *w = h->weights, *m = h->momentum;
    for (const int32_t *end = m + weight_count(h); m < end; m++, w++) {
        int32_t step = *m;
        if (gradient) {
            step += apply_factor(*gradient, f);
            *gradient++ = 0;
        }
        step -= multiply_high(*w, by.decay);
        *w += step;
        *m = kept(step, by);
    }
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

/* The step where weights have momentum. */
static void step_with_momentum(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t held,
                               mean_factor f, movement by)
{
    int32_t *const gradient = holds_gradient(h->config) ? h->gradient : NULL;
    const int at_once = held && !f.shift && !by.decay && by.whole; /* the last sample is added as the weights move */
    const uint32_t before = held - (at_once ? 1 : 0);
    if (f.shift && !gradient)
        add_by_blocks(h, samples, errors, held, f);
    else
        for (uint32_t s = 0; s < before; s++)
            add_sample(h, gradient ? gradient : h->momentum, samples + s * h->features, errors + s * h->classes);
    if (!at_once) {
        move_weights(h, gradient, f, by);
        return;
    }
    const sample_loop loop = {
        .x = samples + before * h->features,
        .end = samples + held * h->features,
        .classes = h->classes,
        .errors = errors + before * h->classes,
        .sum = gradient,
        .weights = h->weights,
        .momentum = h->momentum,
        .keep = by.keep,
    };
    if (gradient)
        by_threes(&loop, move_sum_3, move_sum_2, move_sum_1);
    else
        by_fives(&loop, move_5, move_2, move_1);
}

/* The step where they have none. */
static void step_in_place(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t pending,
                          mean_factor f, int32_t decay)
{
    if (!is_short(h) && decay)
        decay_weights(h->weights, weight_count(h), decay);
    if (is_short(h) && !f.shift && !decay && pending == 1) {
        const sample_loop loop = {
            .x = samples,
            .end = samples + h->features,
            .classes = h->classes,
            .errors = errors,
            .weights = h->weights,
            .random = rounding_seed(h),
        };
        by_fives(&loop, move_short_5, move_short_2, move_short_1);
    } else if (is_short(h) || f.shift) {
        add_by_blocks(h, samples, errors, pending, f);
    } else {
        for (uint32_t s = 0; s < pending; s++)
            add_sample(h, h->weights, samples + s * h->features, errors + s * h->classes);
    }
}

void take_step(const linear_head *h, const int8_t *samples, const int32_t *errors, uint32_t held, uint32_t pending,
               uint32_t reach)
{
    const uint32_t steps = h->state->steps;
    const mean_factor f = factor_of(h->config->batch, pending);
    const float keep = h->config->momentum * (learning_rate(h, steps + 1) / learning_rate(h, steps));
    const movement by = movement_of(keep, decay(h));
    const uint32_t step = step_bound(h, known_bounds(h), (uint32_t)apply_factor((int32_t)reach, f) + 1);

    move_biases(h, errors, pending, keep);
    if (has_momentum(h)) {
        step_with_momentum(h, samples, errors, held, f, by);
        *h->momentum_bound = (uint32_t)kept((int32_t)step, by) + 1;
    } else {
        step_in_place(h, samples, errors, pending, f, by.decay);
    }
    h->state->bound += step;
    h->state->steps++;
}
