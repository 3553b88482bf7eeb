/* Weights of 32 bits that have momentum: 8 bytes a parameter, and 12 where a batch is held as a sum of gradients. */
#include "weights.h"

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

/* Whether the last sample is added as the weights move. */
static int is_at_once(const step *s) { return s->held && !s->factor.shift && !s->by.decay && s->by.whole; }

static void add_samples(const linear_head *h, const step *s, int32_t *sums)
{
    const uint32_t count = s->held - (is_at_once(s) ? 1u : 0u);
    for (uint32_t i = 0; i < count; i++)
        add_sample(h, sums, s->samples + i * h->features, s->errors + i * h->classes);
}

static sample_loop last_sample(const linear_head *h, const step *s, int32_t *gradient)
{
    return (sample_loop){
        .x = s->samples + (s->held - 1) * h->features,
        .end = s->samples + s->held * h->features,
        .classes = h->classes,
        .errors = s->errors + (s->held - 1) * h->classes,
        .sum = gradient,
        .weights = h->weights,
        .momentum = h->momentum,
        .keep = s->by.keep,
    };
}

static void move_by_momentum(const linear_head *h, const step *s)
{
    if (s->factor.shift)
        add_by_blocks(h, s, h->momentum);
    else
        add_samples(h, s, h->momentum);
    if (is_at_once(s)) {
        const sample_loop loop = last_sample(h, s, NULL);
        by_fives(&loop, move_5, move_2, move_1);
    } else {
        move_weights(h, NULL, s->factor, s->by);
    }
}

static void move_by_gradient(const linear_head *h, const step *s)
{
    if (!holds_gradient(h->config)) {
        move_by_momentum(h, s);
        return;
    }
    add_samples(h, s, h->gradient);
    if (is_at_once(s)) {
        const sample_loop loop = last_sample(h, s, h->gradient);
        by_threes(&loop, move_sum_3, move_sum_2, move_sum_1);
    } else {
        move_weights(h, h->gradient, s->factor, s->by);
    }
}

static void halve_both(const linear_head *h)
{
    halve_words(h->weights, weight_count(h));
    halve_words(h->momentum, weight_count(h));
}

const memory_mode momentum_alone = {1, score_whole, largest_whole, halve_both, move_by_momentum};
const memory_mode gradient_and_momentum = {1, score_whole, largest_whole, halve_both, move_by_gradient};
