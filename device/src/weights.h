/* What the memory modes share: block floats, loops over a sample's features, and the parts of a step. docs/learning.md has
 * the derivation. */
#ifndef ENTROPI_WEIGHTS_H
#define ENTROPI_WEIGHTS_H

#include "head.h"

enum {
    FEATURE_BITS = 7,              /* |x| <= 2^7 */
    ERROR_BITS = FEATURE_BITS + 1, /* an error is a multiple of 2^(exponent - 8) */
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

typedef void class_loop(const sample_loop *l, uint32_t first);

/* All classes by threes, twos and ones. */
static inline void by_threes(const sample_loop *l, class_loop *three, class_loop *two, class_loop *one)
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
static inline void by_fives(const sample_loop *l, class_loop *five, class_loop *two, class_loop *one)
{
    uint32_t c = 0;
    for (; !ENTROPI_SHORT_MULTIPLY && c + 5 <= l->classes; c += 5)
        five(l, c);
    for (; !ENTROPI_SHORT_MULTIPLY && c + 2 <= l->classes; c += 2)
        two(l, c);
    for (; c < l->classes; c++)
        one(l, c);
}

SPECIALISE void load_errors(const sample_loop *l, uint32_t first, uint32_t width, int32_t *e)
{
#define DO(k) e[k] = l->errors[first + k];
    EACH_CLASS(width, DO)
#undef DO
}

/* What makes the mean of a batch that is not full from a sum that was divided as if it were. */
typedef struct {
    int64_t multiplier;
    int shift; /* 0 for a full batch */
} mean_factor;

static inline int32_t apply_factor(int32_t sum, mean_factor f)
{
    return f.shift ? (int32_t)((sum * f.multiplier + ((int64_t)1 << (f.shift - 1))) >> f.shift) : sum;
}

/* How a step moves weights that have momentum. */
typedef struct {
    int32_t decay; /* what it takes of a weight, in 2^-32 */
    int32_t keep;  /* what the next step keeps of it, in 2^-32, less 1 where that is more than half */
    int32_t whole; /* -1 there, else 0 */
} movement;

static inline int32_t kept(int32_t step, movement by) { return add_high(step & by.whole, step, by.keep); }

/* A step. samples and errors are those of the `held` last ones; the others have been added to the gradient. */
typedef struct {
    const int8_t *samples;
    const int32_t *errors;
    uint32_t held;
    mean_factor factor;
    movement by;
} step;

/* How weights of so many bytes a parameter are kept. */
struct memory_mode {
    uint32_t last_bit;                                 /* what rounding a weight can move it by */
    void (*score)(const sample_loop *l);               /* scores: sums of weights times x */
    uint32_t (*largest_weight)(const linear_head *h);  /* a bound of all mantissas' magnitudes */
    void (*halve)(const linear_head *h);               /* every mantissa, momentum included */
    void (*move)(const linear_head *h, const step *s); /* all weights */
};

/* Of mantissas of 32 bits: what modes share. */
void score_whole(const sample_loop *l);
uint32_t largest_word(const int32_t *words, uint32_t count); /* a bound of their magnitudes */
uint32_t largest_whole(const linear_head *h);
void halve_words(int32_t *words, uint32_t count);

static inline uint32_t weight_count(const linear_head *h) { return h->features * h->classes; }

typedef void use_block(void *context, const linear_head *h, const step *s, uint32_t from, uint32_t to);

/* Give the gradient of the step's first `count` samples to `use`, HEAD_BLOCK features at a time: in h->block, all zeros
 * again when it returns, of the features from..to - 1. */
void by_blocks(const linear_head *h, const step *s, uint32_t count, use_block *use, void *context);

/* by_blocks of all samples: sums[i] += their gradient, int32_t[features][classes]. */
void add_by_blocks(const linear_head *h, const step *s, int32_t *sums);

#endif
