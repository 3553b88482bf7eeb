/* Weights of 32 bits: what all heads of them share, and those of 4 bytes a parameter, to which a step is added in place. */
#include "weights.h"

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

void score_whole(const sample_loop *l) { by_threes(l, score_3, score_2, score_1); }

uint32_t largest_word(const int32_t *words, uint32_t count)
{
    int32_t found = 0;
    UNROLLED(4)
    for (const int32_t *end = words + count; words < end; words++) {
        const int32_t size = *words ^ *words >> 31; /* or one less */
        found = size > found ? size : found;
    }
    return (uint32_t)found + 1;
}

uint32_t largest_whole(const linear_head *h) { return largest_word(h->weights, weight_count(h)); }

void halve_words(int32_t *words, uint32_t count)
{
    UNROLLED(4)
    for (const int32_t *end = words + count; words < end; words++)
        *words = (*words >> 1) + (*words & 1);
}

static void halve_weights(const linear_head *h) { halve_words(h->weights, weight_count(h)); }

static void move_in_place(const linear_head *h, const step *s)
{
    if (s->by.decay) {
        int32_t *w = h->weights;
        for (const int32_t *end = w + weight_count(h); w < end; w++)
            *w -= multiply_high(*w, s->by.decay);
    }
    if (s->factor.shift) {
        add_by_blocks(h, s, h->weights);
        return;
    }
    for (uint32_t i = 0; i < s->held; i++)
        add_sample(h, h->weights, s->samples + i * h->features, s->errors + i * h->classes);
}

const memory_mode weights_alone = {1, score_whole, largest_whole, halve_weights, move_in_place};
