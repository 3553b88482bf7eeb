/* Weights of 16 bits, the upper halves of mantissas: 2 bytes a parameter. */
#include "weights.h"

/* A weight of 16 bits is rounded up as often as its fraction says: a number of 16 bits is added to the fraction, one
 * for all classes of a feature. */
static inline int32_t draw_rounding(uint32_t *random)
{
    *random *= 62605u; /* 5 modulo 8: odd numbers come back after 2^30 */
    return (int32_t)(*random >> 16);
}

static inline int16_t add_upper(int16_t weight, int32_t step) { return (int16_t)(weight + (step >> 16)); }

/* Sums of 32 bits do for a while. */
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

/* Functions to themselves, so that the loops have all registers. */
NOT_INLINED void score_short_5(const sample_loop *l, uint32_t first) { score_short(l, first, 5); }
NOT_INLINED void score_short_2(const sample_loop *l, uint32_t first) { score_short(l, first, 2); }
NOT_INLINED void score_short_1(const sample_loop *l, uint32_t first) { score_short(l, first, 1); }
NOT_INLINED void move_short_5(const sample_loop *l, uint32_t first) { move_short(l, first, 5, 0); }
NOT_INLINED void move_short_2(const sample_loop *l, uint32_t first) { move_short(l, first, 2, 0); }
NOT_INLINED void move_short_1(const sample_loop *l, uint32_t first) { move_short(l, first, 1, 0); }
NOT_INLINED void move_short_sum_5(const sample_loop *l, uint32_t first) { move_short(l, first, 5, 1); }
NOT_INLINED void move_short_sum_2(const sample_loop *l, uint32_t first) { move_short(l, first, 2, 1); }
NOT_INLINED void move_short_sum_1(const sample_loop *l, uint32_t first) { move_short(l, first, 1, 1); }

static void score_all(const sample_loop *l) { by_fives(l, score_short_5, score_short_2, score_short_1); }

static uint32_t largest_short(const linear_head *h)
{
    int32_t found = 0;
    const int16_t *w = h->weights;
    for (const int16_t *end = w + weight_count(h); w < end; w++) {
        const int32_t size = *w < 0 ? -*w : *w;
        found = size > found ? size : found;
    }
    return (uint32_t)found << 16;
}

static void halve_short(const linear_head *h)
{
    int16_t *w = h->weights;
    for (const int16_t *end = w + weight_count(h); w < end; w++)
        *w = (int16_t)((*w >> 1) + (*w & 1));
}

static uint32_t rounding_seed(const linear_head *h) { return mix(mix(h->config->seed) ^ h->state->steps) | 1u; }

/* A block is added; the context is the state of the rounding. */
static void move_rounded(void *context, const linear_head *h, const step *s, uint32_t from, uint32_t to)
{
    uint32_t *const seed = context, random = *seed;
    int16_t *w = (int16_t *)h->weights + from * h->classes;
    int32_t *sum = h->block;
    for (; from < to; from++) {
        const int32_t up = draw_rounding(&random);
        for (const int16_t *end = w + h->classes; w < end; w++, sum++) {
            *w = add_upper(*w, up + apply_factor(*sum, s->factor) - multiply_high(*w * 65536, s->by.decay));
            *sum = 0;
        }
    }
    *seed = mix(*seed) | 1u;
}

/* The step's last sample, to be added as the weights move; sum: of the samples before it, or NULL. */
static sample_loop last_sample(const linear_head *h, const step *s, uint32_t from, uint32_t to, uint32_t seed,
                               int32_t *sum)
{
    const int8_t *const x = s->samples + (s->held - 1) * h->features;
    return (sample_loop){
        .x = x + from,
        .end = x + to,
        .classes = h->classes,
        .errors = s->errors + (s->held - 1) * h->classes,
        .sum = sum,
        .weights = (int16_t *)h->weights + from * h->classes,
        .random = seed,
    };
}

static void move_at_once(void *context, const linear_head *h, const step *s, uint32_t from, uint32_t to)
{
    uint32_t *const seed = context;
    const sample_loop loop = last_sample(h, s, from, to, *seed, h->block);
    by_fives(&loop, move_short_sum_5, move_short_sum_2, move_short_sum_1);
    *seed = mix(*seed) | 1u;
}

static void move_all(const linear_head *h, const step *s)
{
    uint32_t seed = rounding_seed(h);
    if (s->factor.shift || s->by.decay) {
        by_blocks(h, s, s->held, move_rounded, &seed);
    } else if (s->held > 1) {
        by_blocks(h, s, s->held - 1, move_at_once, &seed);
    } else {
        const sample_loop loop = last_sample(h, s, 0, h->features, seed, NULL);
        by_fives(&loop, move_short_5, move_short_2, move_short_1);
    }
}

const memory_mode short_weights = {0x10000, score_all, largest_short, halve_short, move_all};
